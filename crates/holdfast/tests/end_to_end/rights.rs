//! Who may do what at the API: by the role in a certificate, and by the groups of a user of the host.

use crate::calling::{Connection, ask_as, ask_socket, issue};
use crate::stage::{HOLDFAST, Stage};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

const ROLES: [&str; 4] = ["viewer", "operator", "builder", "admin"];

/// A stage whose site A has its API on TCP, at this port.
pub(crate) fn with_api_on_tcp() -> (Stage, u16) {
    let mut stage = Stage::set();
    let port = lab::free_port().unwrap();
    stage.a.stop_agent().unwrap();
    stage.a.configure(&format!("[api]\nlisten = \"127.0.0.1:{port}\"\n")).unwrap();
    stage.a.start_agent().unwrap();
    (stage, port)
}

/// Every route of the API, with something in the place of each name, and the role it needs.
fn routes() -> Vec<(String, String, usize)> {
    let output = Command::new(HOLDFAST).arg("openapi").output().unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut routes = vec![("GET".to_owned(), "/v1/openapi.json".to_owned(), 0)];
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let role = operation["x-holdfast-role"]
                .as_str()
                .unwrap_or_else(|| panic!("{method} {path} needs no role"));
            let rank = ROLES.iter().position(|name| *name == role).unwrap();
            let path: Vec<_> =
                path.split('/').map(|part| if part.starts_with('{') { "7" } else { part }).collect();
            routes.push((method.to_uppercase(), path.join("/"), rank));
        }
    }
    routes
}

#[test]
fn every_route_is_refused_to_a_certificate_without_its_role_and_the_role_is_named() {
    let (stage, port) = with_api_on_tcp();
    for role in ROLES {
        issue(&stage.a, &["--operator", role, "--role", role]);
    }
    let routes = routes();
    assert!(routes.len() > 30, "{routes:?}");
    for (rank, role) in ROLES.iter().enumerate() {
        let mut connection = Connection::open(&stage.a, role, port);
        for (method, path, needed) in &routes {
            let answer = connection.ask(method, path, "{}").unwrap();
            let what = format!("{role}: {method} {path}: {answer:?}");
            assert_eq!(answer.status == 403, rank < *needed, "{what}");
            if answer.status == 403 {
                assert!(answer.detail().contains(&format!("needs the role {}", ROLES[*needed])), "{what}");
                assert!(
                    answer.detail().contains(&format!("{role}.site-a's certificate has the role {role}")),
                    "{what}"
                );
                assert!(answer.head.contains("application/problem+json"), "{what}");
            }
        }
    }
    // An agent speaks for its VMs, and is no operator of the other hosts.
    let mut connection = Connection::open(&stage.a, "agent", port);
    for (method, path, _) in &routes {
        let answer = connection.ask(method, path, "{}").unwrap();
        assert!(
            answer.status == 403 && answer.detail().contains("has no role here"),
            "{method} {path}: {answer:?}"
        );
    }
    let mut command = stage.a.command();
    command.args(["vm", "pause", "web", "--agent", &format!("127.0.0.1:{port}")]);
    for (option, file) in [("--ca", "ca.pem"), ("--cert", "viewer.pem"), ("--key", "viewer.key")] {
        command.arg(option).arg(stage.a.pki().join(file));
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(10) && said.contains("needs the role operator"), "{said}");
}

#[test]
fn a_user_of_the_host_has_the_role_of_its_groups_and_one_without_gets_no_further() {
    let mut stage = Stage::set();
    std::fs::set_permissions(stage.folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&stage.a.folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let socket = stage.a.api_socket();
    let (see, pause) = (("GET", "/v1/status"), ("POST", "/v1/vms/web/pause"));
    // With no group named nobody else comes as far as the socket.
    let denied = libc::EACCES.to_string();
    assert_eq!(ask_as(65531, &[], &socket, see.0, see.1), (0, denied.clone()));
    stage.a.stop_agent().unwrap();
    stage.a.configure("[rights]\nviewer = \"65532\"\noperator = \"65531\"\n").unwrap();
    stage.a.start_agent().unwrap();
    let (status, said) = ask_as(65532, &[], &socket, see.0, see.1);
    assert_eq!(status, 200, "{said}");
    let (status, said) = ask_as(65532, &[], &socket, pause.0, pause.1);
    assert!(
        status == 403 && said.contains("needs the role operator") && said.contains("user 65533"),
        "{said}"
    );
    // Other groups of a user count as well: this one is let through, to a VM that is not there.
    let (status, said) = ask_as(65530, &[65529, 65531], &socket, pause.0, pause.1);
    assert!(status == 404 && said.contains("no VM"), "{said}");
    let (status, said) = ask_as(65530, &[65529], &socket, see.0, see.1);
    assert!(status == 403 && said.contains("has no role here"), "{said}");
    assert_eq!(ask_socket(&socket, "GET", "/v1/status", "").status, 200, "root has all roles");
    // Whoever may pass through the folder finds nothing in it that it may use.
    let disk = stage.disk("disk.raw", 1 << 20);
    let disk_socket = stage.protect("web", "web", &disk);
    assert_eq!(ask_as(65531, &[65532], disk_socket.as_ref(), see.0, see.1), (0, denied));
    stage.a.stop_agent().unwrap();
    stage.a.configure("[rights]\nviewer = \"no-such-group\"\n").unwrap();
    let error = stage.a.start_agent().unwrap_err();
    assert!(
        format!("{error:#}").contains("[rights] viewer: there is no group \"no-such-group\""),
        "{error:#}"
    );
}
