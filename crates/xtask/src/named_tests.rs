//! Tests that documents name as what shows a sentence are there: a name that is no test's shows nothing.

use crate::prepare::root;
use crate::sources;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;

const DOCUMENTS: [&str; 2] = ["ARCHITECTURE.md", "docs/operate/trust.md"];
/// What has fewer words between backticks may be anything: a field, a file, a module.
const WORDS_MIN: usize = 4;

pub(crate) fn check() -> Result<()> {
    let sources = sources::below(&root().join("crates"))?;
    let known: BTreeSet<String> = sources.iter().flat_map(|text| functions(text)).collect();
    let mut missing = Vec::new();
    for document in DOCUMENTS {
        let path = root().join(document);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let named = named(&text).into_iter().filter(|name| !known.contains(*name));
        missing.extend(named.map(|name| format!("{document}: {name}")));
    }
    if !missing.is_empty() {
        bail!("tests that are named and are not there:\n{}", missing.join("\n"));
    }
    Ok(())
}

/// What stands between backticks and is a sentence.
fn named(text: &str) -> Vec<&str> {
    let is_sentence = |word: &&str| {
        word.split('_').count() >= WORDS_MIN
            && word
                .chars()
                .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
    };
    text.split('`').skip(1).step_by(2).filter(is_sentence).collect()
}

fn functions(text: &str) -> impl Iterator<Item = String> {
    let after =
        |line: &str| Some(line.trim_start().split_once("fn ")?.1.split(['(', '<']).next()?.to_owned());
    text.lines().filter_map(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_between_backticks_are_names_and_other_words_are_not() {
        let text = "`one_two_three_four` and `one_two`, `a/b_c_d_e.rs` `Some_thing_else_here` `five_words_are_a_name`";
        assert_eq!(named(text), ["one_two_three_four", "five_words_are_a_name"]);
    }

    #[test]
    fn a_function_is_known_by_its_name() {
        let text = "    fn one_two_three() {\npub(crate) async fn other<T>(a: T) {\nlet fun = 1;";
        assert_eq!(functions(text).collect::<Vec<_>>(), ["one_two_three", "other"]);
    }
}
