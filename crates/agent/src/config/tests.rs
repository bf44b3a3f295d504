//! What the samples show is what holds, and they show all there is.

use super::*;

const SAMPLE: &str = include_str!("../../../../config/agent.toml");
const MINIMAL: &str = include_str!("../../../../config/agent-minimal.toml");
/// Ends a line of the sample that shows something else than the default.
const NOT_THE_DEFAULT: &str = "# not the default";

fn parse(text: &str) -> Config {
    Config::parse(text, Path::new("/etc/holdfast/agent.toml")).unwrap()
}

#[test]
fn the_sample_shows_the_true_defaults() {
    let shown: Vec<&str> = SAMPLE.lines().filter(|line| !line.ends_with(NOT_THE_DEFAULT)).collect();
    let (shown, minimal) = (parse(&shown.join("\n")), parse(MINIMAL));
    assert_eq!(format!("{shown:#?}"), format!("{minimal:#?}"));
}

#[test]
fn the_sample_shows_every_setting() {
    let tables = [
        "api",
        "stream",
        "stream.limit",
        "nbd",
        "sockets",
        "rights",
        "buffers",
        "journal",
        "defaults",
        "qemu",
        "guests",
        "alerts",
        "log",
    ];
    let mut missing = Vec::new();
    for table in [""].iter().chain(&tables) {
        let asked = match *table {
            "" => "nothing = 1\n".to_owned(),
            "stream.limit" => format!("{MINIMAL}\n[[stream.limit]]\nnothing = 1\n"),
            table => format!("{MINIMAL}\n[{table}]\nnothing = 1\n"),
        };
        // The parser names all it would have taken.
        let said = Config::parse(&asked, Path::new("agent.toml")).unwrap_err().what;
        let known: Vec<&str> = said.split('`').skip(3).step_by(2).collect();
        assert!(!known.is_empty(), "{table}: {said}");
        let shows = |name: &&str| {
            let names = SAMPLE.lines().map(|line| line.trim_start_matches("# "));
            names
                .into_iter()
                .any(|line| line.starts_with(&format!("{name} =")) || line.starts_with(&format!("[{name}]")))
        };
        missing.extend(
            known
                .iter()
                .filter(|name| !shows(name) && **name != "limit")
                .map(|name| format!("{table}.{name}")),
        );
    }
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn the_operators_commands_and_the_agent_look_in_the_same_places() {
    let config = parse(MINIMAL);
    assert_eq!(config.api_socket, Path::new("/run/holdfast/agent.sock"));
    assert_eq!(config.pki_dir, Path::new("/etc/holdfast/pki"));
}

#[test]
fn sockets_are_for_the_agents_user_unless_a_group_is_named_and_never_for_everybody() {
    let with = |more: &str| Config::parse(&format!("{MINIMAL}\n[sockets]\n{more}"), Path::new("agent.toml"));
    assert_eq!(with("").unwrap().socket_mode, 0o600);
    assert_eq!(with("group = \"kvm\"\n").unwrap().socket_mode, 0o660);
    assert_eq!(with("mode = 0o640\n").unwrap().socket_mode, 0o640);
    assert!(with("mode = 0o666\n").unwrap_err().what.contains("more than 0o660"));
}

#[test]
fn guests_are_never_root() {
    let with = |more: &str| Config::parse(&format!("{MINIMAL}\n[guests]\n{more}"), Path::new("agent.toml"));
    assert_eq!(with("").unwrap().guests.user, "holdfast-guest");
    assert_eq!(with("uids = [70000, 70009]\n").unwrap().guests.uids, Some((70000, 70009)));
    for uids in ["[0, 5]", "[9, 5]", "[5, 4294967295]"] {
        let said = with(&format!("uids = {uids}\n")).unwrap_err().what;
        assert!(said.contains("not root's"), "{said}");
    }
}
