//! The connection of a host that has joined a group this agent coordinates.

use super::Source;
use crate::clock;
use crate::wire_io::{Outgoing, ReadError};
use replication::wire::{CutMessage, Join, Message, Refusal, Refuse};
use std::sync::Arc;
use tokio::sync::mpsc;
use types::limits::{HEARTBEAT_INTERVAL, PEER_SILENCE_MAX};

/// Whether an agent, which is known by its certificate as `AGENT.SITE`, is of this site.
fn is_of_site(agent: &str, site: &str) -> bool {
    agent.split_once('.').is_some_and(|(_, its)| its == site)
}

/// Serves a host until its connection is lost; why it ended.
pub(crate) async fn serve_host(
    source: &Arc<Source>,
    host: &str,
    join: &Join,
    queue: mpsc::UnboundedSender<Outgoing>,
    inbox: &mut mpsc::Receiver<Result<Message, ReadError>>,
) -> String {
    let refuse = |detail: String| {
        let _ =
            queue.send(Message::Refuse(Refuse { why: Refusal::NotAccepted, detail: detail.clone() }).into());
        detail
    };
    if !is_of_site(host, &source.site) {
        let site = &source.site;
        return refuse(format!("{host} is of another site: only agents of site {site} join a group of it"));
    }
    let Some(group) = source.group_named(&join.group_name) else {
        return refuse(format!(
            "no group {:?} is coordinated here; protect its first VM here",
            join.group_name
        ));
    };
    if let Some(coordinator) = group.coordinator() {
        return refuse(format!("group {} is coordinated by {coordinator}", join.group_name));
    }
    let session = match group.on_join(&source.state, host, join.vms, queue.clone()) {
        Ok(session) => session,
        Err(error) => return refuse(format!("{error:#}")),
    };
    let _ = queue.send(Message::Cut(CutMessage::Joined { group: group.id() }).into());
    tracing::info!(group = join.group_name, host, vms = join.vms, "a host has joined the group");
    let mut heard_at = clock::now();
    let mut ticks = tokio::time::interval(HEARTBEAT_INTERVAL);
    let why = loop {
        tokio::select! {
            message = inbox.recv() => {
                heard_at = clock::now();
                match message {
                    Some(Ok(Message::Cut(CutMessage::Prepared { cut, refused }))) => {
                        if let Err(why) = group.hosts().on_prepared(&group, host, session, (cut, refused)) {
                            tracing::warn!(group = join.group_name, host, %why, "the host is not believed");
                            break why.to_string();
                        }
                    }
                    Some(Ok(Message::Cut(CutMessage::Durable { cut }))) => group.on_host_durable(host, cut),
                    Some(Ok(Message::Heartbeat)) => {}
                    Some(Ok(_)) => break "something that has no place here".to_owned(),
                    Some(Err(error)) => break error.to_string(),
                    None => break "the connection was closed".to_owned(),
                }
            }
            _ = ticks.tick() => {
                if clock::now().since(heard_at) > PEER_SILENCE_MAX {
                    break "the host has gone silent".to_owned();
                }
                let _ = queue.send(Message::Heartbeat.into());
            }
        }
    };
    group.hosts().leave(&group, host, session);
    why
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_agents_of_the_own_site_join() {
        assert!(is_of_site("beta.berlin", "berlin"));
        for other in ["beta.munich", "berlin", "berlin.munich", "beta.berlin.munich", "beta.x.berlin"] {
            assert!(!is_of_site(other, "berlin"), "{other}");
        }
    }
}
