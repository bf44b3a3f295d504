use super::graph::Graph;
use super::layers::upward;
use super::refused;
use super::told;
use std::collections::BTreeMap;
use std::path::Path;

/// Each file with those it knows.
fn knows(files: &[(&str, &str)]) -> BTreeMap<String, Vec<String>> {
    let graph = graph(files);
    let name = |at: usize| graph.files[at].display().to_string();
    let row = |at: usize| (name(at), graph.knows[at].iter().map(|to| name(*to)).collect());
    (0..graph.files.len()).map(row).collect()
}

fn graph(files: &[(&str, &str)]) -> Graph {
    let read =
        |path: &Path| files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, s)| (*s).to_owned());
    Graph::of(Path::new("lib.rs"), &read)
}

#[test]
fn uses_paths_and_re_exports_lead_to_the_file_that_has_the_thing() {
    let files = [
        ("lib.rs", "mod a;\nmod b;\nmod c;\npub use b::inner::{Deep as Shown, Other};"),
        ("a.rs", "use crate::{Shown, b::{self, Own}};\nfn f() { crate::c::run::<u8>(); std::mem::swap(); }"),
        ("b.rs", "pub(crate) mod inner;\npub use inner::Other;\nuse super::c::*;"),
        ("b/inner.rs", "use super::Own;\nuse super::super::a::f as g;"),
        ("c.rs", "impl crate::b::Other { }"),
    ];
    let knows = knows(&files);
    assert_eq!(knows["lib.rs"], ["b/inner.rs"]);
    assert_eq!(knows["a.rs"], ["b.rs", "b/inner.rs", "c.rs"]);
    assert_eq!(knows["b.rs"], ["b/inner.rs", "c.rs"]);
    assert_eq!(knows["b/inner.rs"], ["a.rs", "b.rs"]);
    assert_eq!(knows["c.rs"], ["b/inner.rs"]);
}

#[test]
fn what_a_file_brings_all_in_of_leads_to_the_one_that_defines_it() {
    let files = [
        ("lib.rs", "mod a;\nmod b;\nmod c;\npub use a::*;\npub use b::*;\npub fn own() {}"),
        ("a.rs", "pub struct A;"),
        ("b.rs", "pub enum B {}\nfn f(a: crate::A) {}"),
        ("c.rs", "use crate::{B, own};"),
    ];
    let knows = knows(&files);
    assert_eq!(knows["b.rs"], ["a.rs"]);
    assert_eq!(knows["c.rs"], ["lib.rs", "b.rs"]);
}

#[test]
fn comments_strings_characters_and_tests_name_nothing() {
    let files = [
        ("lib.rs", "mod a;\nmod b;"),
        (
            "a.rs",
            r####"// crate::b::x
            /* crate::b::x /* nested */ crate::b::x */
            pub(in crate::b) struct Shown;
            const S: &str = "\" crate::b::x"; const R: &str = r#"crate::b::x "quoted" "#; const C: char = '"';
            fn f<'a>(x: &'a str) -> char { '\'' }
            #[cfg(test)]
            use crate::b::{x, y};
            #[cfg(test)]
            mod tests { use crate::b::x; fn g() { crate::b::x() } }
            #[cfg(test)]
            mod more;"####,
        ),
        ("a/more.rs", "use crate::b::x;"),
        ("b.rs", "use crate::a::f;"),
    ];
    let knows = knows(&files);
    assert_eq!(knows["a.rs"], [""; 0]);
    assert_eq!(knows["b.rs"], ["a.rs"]);
    assert!(!knows.contains_key("a/more.rs"));
}

#[test]
fn in_a_module_that_is_written_into_a_file_super_is_the_file() {
    let files = [
        ("lib.rs", "mod a;\nmod b;"),
        (
            "a.rs",
            "mod inside { use super::f; use super::super::b; fn g() { if true { } } }\nuse super::b::x;",
        ),
        ("b.rs", ""),
    ];
    assert_eq!(knows(&files)["a.rs"], ["b.rs"]);
}

#[test]
fn two_may_know_each_other_and_three_may_not() {
    let two = [("lib.rs", "mod a;\nmod b;"), ("a.rs", "use crate::b::b;"), ("b.rs", "use crate::a::a;")];
    assert!(graph(&two).circles().is_empty());
    let three = [
        ("lib.rs", "mod a;\nmod b;\nmod c;\nmod d;\nuse a::a;"),
        ("a.rs", "use crate::b::b;"),
        ("b.rs", "use crate::c::c;"),
        ("c.rs", "use crate::a::a;\nuse crate::d::d;"),
        ("d.rs", ""),
    ];
    let graph = graph(&three);
    let circles: Vec<_> = graph.circles().iter().map(|circle| told(&graph, circle)).collect();
    let said = refused(&circles, &[]);
    let circle = "3 files that know one another:\n  a.rs knows b.rs\n  b.rs knows c.rs\n  c.rs knows a.rs";
    assert_eq!(said, [circle]);
    assert!(refused(&circles, &[("b.rs", 3)]).is_empty());
    assert_eq!(refused(&circles, &[("b.rs", 4)]).len(), 1, "a circle that became smaller is written down");
    assert_eq!(refused(&circles, &[("b.rs", 2)]).len(), 1, "one that became larger is refused");
    assert_eq!(refused(&circles, &[("b.rs", 3), ("d.rs", 5)]).len(), 1, "one that is gone is taken off");
}

#[test]
fn a_room_knows_what_is_below_it_and_nothing_beside_or_above() {
    let files = [
        (
            "crates/agent/src/lib.rs",
            "mod daemon;\nmod http;\nmod recovery;\nmod source;\nmod error;\npub use daemon::run;",
        ),
        ("crates/agent/src/daemon.rs", "use crate::http::App;\nuse crate::source::Source;"),
        ("crates/agent/src/http.rs", "use crate::recovery::Recovery;\nuse crate::error::Error;"),
        ("crates/agent/src/recovery.rs", "mod inside;"),
        ("crates/agent/src/recovery/inside.rs", "use crate::source::Source;\nuse super::Recovery;"),
        ("crates/agent/src/source.rs", "use crate::error::Error;"),
        ("crates/agent/src/error.rs", "use crate::daemon::run;"),
    ];
    let read =
        |path: &Path| files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, s)| (*s).to_owned());
    let graph = Graph::of(Path::new("crates/agent/src/lib.rs"), &read);
    let mut said = upward(&graph, Path::new("crates"));
    said.sort();
    let beside = "crates/agent/src/recovery/inside.rs knows source";
    assert_eq!(said, ["crates/agent/src/error.rs knows daemon", beside]);
}

#[test]
fn the_workspace_is_as_it_is_to_be() {
    super::check().unwrap();
}
