//! What a change of a protection is, and what it costs, for an operator before it is made.

use super::plan::{Kept, VmChange};
use crate::policy::{OnFenced, Policy, StreamMode};
use serde_json::Value;
use std::collections::BTreeMap;

/// A change in the words of the API.
pub(super) fn tell(change: &VmChange) -> api::ChangedVm {
    let (before, after) = (rows(&change.before), rows(&change.after));
    let settings = before.into_iter().filter_map(|(name, before)| {
        let after = after.get(&name).cloned().unwrap_or(Value::Null);
        (before != after).then_some(api::ChangedSetting { name, before, after })
    });
    api::ChangedVm {
        id: change.vm.to_string(),
        vm: change.name.clone(),
        settings: settings.collect(),
        costs: costs(&change.before, &change.after, &change.name),
    }
}

/// What it is kept to, by the names that the API has for it.
fn rows(kept: &Kept) -> BTreeMap<String, Value> {
    let policy = serde_json::to_value(&kept.policy).expect("a policy is JSON");
    let Value::Object(policy) = policy else { unreachable!("a policy has names") };
    let mut rows: BTreeMap<_, _> = policy.into_iter().collect();
    rows.insert("peer".into(), kept.peer.clone().into());
    rows.insert("peer_agent".into(), kept.peer_agent.clone().into());
    let files = kept.files.iter().map(|file| format!("{} {}", file.name, file.hash)).collect::<Vec<_>>();
    let definition = format!("{}\n{}", kept.definition, files.join("\n"));
    // Its text is long: what counts is that it is another.
    let hash = &blake3::hash(definition.as_bytes()).to_hex()[..12];
    rows.insert("definition".into(), hash.into());
    rows
}

fn costs(before: &Kept, after: &Kept, name: &str) -> Vec<String> {
    let mut costs = Vec::new();
    let mut say = |is_so: bool, what: String| {
        if is_so {
            costs.push(what);
        }
    };
    say(
        before.is_greeted_otherwise(after),
        "the connection to the recovery side is made anew; nothing is sent again".into(),
    );
    say(
        before.peer_agent.is_some() && before.peer_agent != after.peer_agent,
        format!(
            "where that agent keeps no journal of this VM yet all of it is sent there, and its history begins anew; what {} \
             keeps stays there, until `holdfast vm forget` there",
            before.peer_agent.as_deref().unwrap_or_default()
        ),
    );
    let (was, is) = (&before.policy, &after.policy);
    say(
        asks_less(was, is),
        format!(
            "the recovery side keeps the history it has until an operator there says `holdfast journal set {name} --take-asked`"
        ),
    );
    say(
        was.mode != is.mode && is.mode == StreamMode::Sync,
        "the guest's writes wait for the recovery side, from when its stream has caught up".into(),
    );
    say(
        was.mode != is.mode && is.mode == StreamMode::Async,
        "the guest's writes do not wait for the recovery side any more".into(),
    );
    say(
        !was.leaves_out() && is.leaves_out(),
        "while the link is too slow, what lies between two checkpoints cannot be opened".into(),
    );
    if was.on_fenced != is.on_fenced {
        say(
            is.on_fenced == OnFenced::Pause,
            "where its group has failed over, now or later, its guest stands still here until that is rolled back".into(),
        );
        say(
            is.on_fenced == OnFenced::Stop,
            "where its group has failed over, now or later, its guest is stopped here".into(),
        );
    }
    say(is.buffer_bytes < was.buffer_bytes, "the buffer becomes smaller as it empties".into());
    say(
        is.spill_bytes < was.spill_bytes,
        "what lies in the spill is sent from there; beyond the new bound an outage makes a gap in the history".into(),
    );
    say(
        before.definition != after.definition,
        "from now on the VM is started by the new definition, at older checkpoints too".into(),
    );
    costs
}

fn asks_less(was: &Policy, is: &Policy) -> bool {
    let bytes = |policy: &Policy| match policy.journal_bytes_max {
        0 => u64::MAX,
        bytes => bytes,
    };
    is.history_seconds < was.history_seconds || bytes(is) < bytes(was)
}
