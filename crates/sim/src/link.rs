//! A connection: two queues of encoded messages. It may be cut after any message; what was under way is
//! lost then.

use batch::Pieces;
use journal::batch_room;
use replication::wire::{FrameReader, FrameWriter, HEADER_BYTES, Message};
use std::collections::VecDeque;

/// One direction of a connection, with the real framing on both ends.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    writer: FrameWriter,
    reader: FrameReader,
    under_way: VecDeque<([u8; HEADER_BYTES], Pieces)>,
    swallows: bool,
}

impl Pipe {
    pub(crate) fn send(&mut self, message: &Message) {
        let encoded = self.writer.encode(message);
        if !self.swallows {
            self.under_way.push_back(encoded);
        }
    }

    /// Nothing arrives any more, and nobody is told.
    pub(crate) fn black_hole(&mut self) {
        self.swallows = true;
        self.under_way.clear();
    }

    pub(crate) fn receive(&mut self) -> Option<Message> {
        let (header, body) = self.under_way.pop_front()?;
        let header = self.reader.header(&header).expect("our own framing");
        let mut room = batch_room(body.len());
        body.iter().for_each(|piece| room.extend_from_slice(piece));
        Some(self.reader.message(&header, room.freeze()).expect("our own framing"))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }
}

/// Both directions.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    pub(crate) to_receiver: Pipe,
    pub(crate) to_sender: Pipe,
}
