//! Which agent sends a VM: the one whose greeting made it, until an operator of this side says that another of its site has
//! it now.
//!
//! What holds: no greeting changes it. A host that was installed anew under another name, or took a VM's state over, comes in
//! by this alone.

use super::Recovery;
use super::groups::site_of;
use crate::error::{OperationError, Result};
use types::is_plain_name;

impl Recovery {
    /// Hands a VM over to another agent of its site: what the one before says of it is refused from now on, and so is its
    /// stream once the new one has greeted.
    pub(crate) fn hand_over(&self, word: &str, to: &str) -> Result<String> {
        let vm = self.vm(word)?;
        let record = vm.record();
        let site = site_of(&record.peer);
        let agent = to.strip_suffix(&format!(".{site}")).unwrap_or(to);
        // An agent's name has no dot: what is left of another site's would have one.
        if !is_plain_name(agent) || agent.contains('.') {
            return Err(OperationError::invalid(format!(
                "{to:?} is no agent of site {site}: give its name, as `holdfast pki issue --agent` has it. A VM is sent by \
                 its own site"
            )));
        }
        let peer = format!("{agent}.{site}");
        vm.hand_over(&self.state, &peer)?;
        tracing::info!(vm = vm.label(), from = record.peer, to = peer, "handed over");
        Ok(format!("VM {} is sent by {peer} from now on", vm.label()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{PEER, admit_named, end, hello_of_group, recovery};
    use crate::error::ErrorKind;
    use joint::admission::Accept;
    use replication::wire::{Hello, Leave, Message, Refusal};
    use types::{Epoch, WriteSeq};

    #[test]
    fn a_vm_is_sent_by_its_own_agent_until_an_operator_hands_it_over() {
        let folder = tempfile::tempdir().unwrap();
        let side = recovery(folder.path());
        let (vm, _) = admit_named(&side, 1, "web", PEER);
        let hello = Hello { vm_name: "web".into(), ..hello_of_group(1, 11, "web") };
        let other = "agent-2.paris";
        let refused = side.admit(&hello, other).unwrap_err();
        assert_eq!(refused.why, Refusal::NotAccepted);
        assert!(refused.detail.contains("hand-over"), "{}", refused.detail);
        let leave = Leave { vm: hello.vm, group: hello.group, epoch: Epoch(9), at: WriteSeq::ZERO };
        assert!(matches!(side.on_leave(&leave, other), Message::Refuse(_)), "it says that the VM has left");
        assert_eq!(vm.record().peer, PEER, "a greeting that is refused changes nothing");
        for to in ["agent-2.rome", "agent.2", "", "../x"] {
            assert_eq!(side.hand_over("web", to).unwrap_err().kind, ErrorKind::Invalid, "{to:?}");
        }
        side.hand_over("web", "agent-2").unwrap();
        drop(vm);
        end(side);
        let side = super::super::tests::recovery(folder.path());
        side.resume_all().unwrap();
        assert_eq!(side.admit(&hello, PEER).unwrap_err().why, Refusal::NotAccepted, "it has it no more");
        side.admit(&hello, other).unwrap();
        assert!(side.hand_over("web", "agent-1.paris").is_ok(), "and back, by its whole name");
    }

    /// Who comes back again and again has always a greeting under way.
    #[test]
    fn a_vm_that_is_handed_over_while_a_greeting_is_decided_on_is_not_given_back_by_that() {
        let folder = tempfile::tempdir().unwrap();
        let side = recovery(folder.path());
        let (vm, _) = admit_named(&side, 1, "web", PEER);
        let hello = Hello { vm_name: "web".into(), ..hello_of_group(1, 11, "web") };
        let seen = vm.record();
        let accept = || Accept { terms: seen.terms(), asks_less: None };
        side.hand_over("web", "agent-2").unwrap();
        assert!(!vm.follow(&side.state, (&hello, PEER), accept(), &seen).unwrap());
        assert_eq!(vm.record().peer, "agent-2.paris");
        let seen = vm.record();
        assert!(vm.follow(&side.state, (&hello, "agent-2.paris"), accept(), &seen).unwrap());
    }
}
