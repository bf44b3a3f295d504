//! Everything that a peer with a valid certificate can say, in every state: what the tests of `hostile` say in short.

use crate::hostile::{Form, host, liars, protected_side};

#[test]
#[ignore = "suite: joints"]
fn a_protected_side_says_everything_everywhere() {
    protected_side(Form::Whole);
}

#[test]
#[ignore = "suite: joints"]
fn a_recovery_side_says_everything_everywhere() {
    liars::recovery_side(Form::Whole);
}

#[test]
#[ignore = "suite: joints"]
fn a_host_says_everything() {
    host(Form::Whole);
}
