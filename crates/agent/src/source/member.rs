//! This host's part in a group that another agent coordinates: it holds, cuts and marks when it is told to.
//!
//! The hold ends by itself after [`CUT_HOLD_MAX`], and when the connection is lost: a coordinator that is
//! slow or dead costs a checkpoint, not the guests.

use super::Source;
use super::group::Group;
use crate::clock;
use crate::link::{self, Connected};
use crate::wire_io::{read_message, write_messages};
use anyhow::{Context, Result, bail};
use replication::wire::{CutMessage, FrameReader, Join, Message};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use types::limits::{CONNECT_TIMEOUT, CUT_HOLD_MAX, HEARTBEAT_INTERVAL, PEER_SILENCE_MAX};
use types::{GroupId, WriteSeq};

const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Asks the coordinator for the group's id; the group has `vms` here.
pub(super) async fn ask_to_join(
    source: &Source,
    coordinator: &str,
    group: &str,
    vms: u16,
) -> Result<GroupId> {
    let joining = async { join(source, coordinator, group, vms).await.map(|(_, _, id)| id) };
    timeout(CONNECT_TIMEOUT, joining).await.context("the coordinator does not answer")?
}

async fn join(
    source: &Source,
    coordinator: &str,
    group: &str,
    vms: u16,
) -> Result<(Connected, FrameReader, GroupId)> {
    let mut connected = link::connect(&source.pki, coordinator, source.dscp).await?;
    let mut frames = FrameReader::default();
    let hello = Message::Join(Join { group_name: group.to_owned(), vms });
    let (mut header, body) = (Vec::new(), connected.first.encode(&hello));
    header.extend_from_slice(&body.0);
    header.extend_from_slice(&body.1);
    tokio::io::AsyncWriteExt::write_all(&mut connected.writer, &header).await.context("say who joins")?;
    tokio::io::AsyncWriteExt::flush(&mut connected.writer).await.context("say who joins")?;
    match read_message(&mut connected.reader, &mut frames).await.context("hear the coordinator")? {
        Message::Cut(CutMessage::Joined { group }) => Ok((connected, frames, group)),
        Message::Refuse(refuse) => bail!("the coordinator refuses: {}", refuse.detail),
        _ => bail!("the coordinator says something that has no place here"),
    }
}

/// Follows the coordinator for as long as the group lives.
pub(super) async fn follow(source: Arc<Source>, group: Weak<Group>, coordinator: String) {
    let mut last_error = None;
    loop {
        let Some(alive) = group.upgrade() else { return };
        let name = alive.name().to_owned();
        let vms = u16::try_from(alive.members().len()).unwrap_or(u16::MAX);
        if vms > 0 {
            let why = match timeout(CONNECT_TIMEOUT, join(&source, &coordinator, &name, vms)).await {
                Ok(Ok((connected, frames, _))) => {
                    tracing::info!(group = name, coordinator, "follows the group's coordinator");
                    last_error = None;
                    serve(&alive, connected, frames).await
                }
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => "the coordinator does not answer".to_owned(),
            };
            if last_error.as_ref() != Some(&why) {
                tracing::warn!(group = name, coordinator, why, "no checkpoint of the group is taken");
            }
            last_error = Some(why);
        }
        drop(alive);
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// Does what the coordinator says until the connection is lost, or the group's VMs here are others.
async fn serve(group: &Arc<Group>, connected: Connected, mut frames: FrameReader) -> String {
    let Connected { mut reader, writer, first, .. } = connected;
    let (queue, outgoing) = mpsc::unbounded_channel();
    let writing = tokio::spawn(write_messages(writer, first, outgoing));
    let (inbox, mut messages) = mpsc::channel(4);
    let reading = tokio::spawn(async move {
        loop {
            let message = read_message(&mut reader, &mut frames).await;
            let ends = message.is_err();
            if inbox.send(message).await.is_err() || ends {
                return;
            }
        }
    });
    let vms = group.members().len();
    let mut durable = WriteSeq::ZERO;
    let mut hold: Option<u64> = None;
    let mut heard_at = clock::now();
    let mut ticks = tokio::time::interval(HEARTBEAT_INTERVAL / 4);
    let why = loop {
        let hold_ends = async {
            match hold {
                Some(_) => tokio::time::sleep(CUT_HOLD_MAX).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            message = messages.recv() => {
                heard_at = clock::now();
                match message {
                    Some(Ok(Message::Cut(CutMessage::Prepare { cut }))) => {
                        let (time, refused) = group.prepare_here(cut);
                        hold = Some(time);
                        let _ = queue.send(Message::Cut(CutMessage::Prepared { cut, refused }).into());
                    }
                    Some(Ok(Message::Cut(CutMessage::Settle { cut, mark }))) => {
                        if let Some(time) = hold.take() {
                            group.let_go(time);
                        }
                        if let Some(mark) = mark
                            && let Err(error) = group.mark_here(cut, &mark)
                        {
                            tracing::warn!(group = group.name(), %cut, error, "the cut is not marked here");
                        }
                    }
                    Some(Ok(Message::Heartbeat)) => {}
                    Some(Ok(_)) => break "something that has no place here".to_owned(),
                    Some(Err(error)) => break error.to_string(),
                    None => break "the connection was closed".to_owned(),
                }
            }
            () = hold_ends => {
                if let Some(time) = hold.take() {
                    group.let_go(time);
                }
            }
            _ = ticks.tick() => {
                if clock::now().since(heard_at) > PEER_SILENCE_MAX {
                    break "the coordinator has gone silent".to_owned();
                }
                if group.members().len() != vms {
                    break "the group has other VMs here now".to_owned();
                }
                let newest = group.newest_durable_cut();
                if newest > durable {
                    durable = newest;
                    let _ = queue.send(Message::Cut(CutMessage::Durable { cut: newest }).into());
                }
                let _ = queue.send(Message::Heartbeat.into());
            }
        }
    };
    if let Some(time) = hold {
        group.let_go(time);
    }
    reading.abort();
    drop(queue);
    let _ = timeout(RETRY_INTERVAL, writing).await;
    why
}
