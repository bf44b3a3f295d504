//! Rooms of a crate, the modules of its root, in layers: each may know what lies below it, and none beside it.

use super::graph::Graph;
use std::path::Path;

/// By crate, from the top. What is not named lies below them all.
const LAYERS: &[(&str, &[&[&str]])] =
    &[("agent", &[&["daemon"], &["http", "stream"], &["source", "recovery"]])];

/// Who knows of what lies above or beside, in a graph of files below `crates`.
pub(super) fn upward(graph: &Graph, crates: &Path) -> Vec<String> {
    let mut upward = Vec::new();
    for (from, knows) in graph.knows.iter().enumerate() {
        let Some((own, room)) = room(&graph.files[from], crates) else { continue };
        let Some((_, layers)) = LAYERS.iter().find(|(name, _)| *name == own) else { continue };
        let layer =
            |room: &str| layers.iter().position(|rooms| rooms.contains(&room)).unwrap_or(layers.len());
        for to in knows {
            let known = room_of(&graph.files[*to], crates);
            if known != room && layer(known) <= layer(room) && layer(known) < layers.len() {
                upward.push(format!("{} knows {known}", graph.files[from].display()));
            }
        }
    }
    upward
}

fn room_of<'a>(file: &'a Path, crates: &Path) -> &'a str {
    room(file, crates).map_or("", |(_, room)| room)
}

/// The crate and the room of a file; none for the crate's root, which knows them all.
fn room<'a>(file: &'a Path, crates: &Path) -> Option<(&'a str, &'a str)> {
    let mut parts = file.strip_prefix(crates).ok()?.iter().filter_map(|part| part.to_str());
    let (own, source, room) = (parts.next()?, parts.next()?, parts.next()?);
    let room = room.strip_suffix(".rs").unwrap_or(room);
    (source == "src" && !matches!(room, "lib" | "main")).then_some((own, room))
}
