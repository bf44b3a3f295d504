//! The handshake: the client looks at the exports, says what it can do, and picks one.

use super::export::Export;
use super::protocol::*;
use crate::writers::{Client, Newcomer};
use std::io::{self, Read, Write};
use types::ByteRange;
use types::limits::{NBD_OPTION_BYTES_MAX, NBD_REQUEST_BYTES_MAX};

/// What was agreed on.
pub(super) struct Agreed<'a> {
    pub(super) export: &'a Export,
    pub(super) structured: bool,
    /// Block status tells of these.
    pub(super) contexts: Vec<Context>,
}

struct Session<'s, 'a, S> {
    stream: &'s mut S,
    exports: &'a [Export],
    client: &'s Client,
    no_zeroes: bool,
    structured: bool,
    /// The export whose contexts were chosen, and which.
    contexts: Option<(String, Vec<Context>)>,
}

/// Runs the handshake; `None` where the client leaves before it picks an export.
pub(super) fn negotiate<'a, S: Read + Write>(
    stream: &mut S,
    exports: &'a [Export],
    client: &Client,
) -> io::Result<Option<Agreed<'a>>> {
    let flags = greet(stream)?;
    negotiate_greeted(stream, flags, exports, client)
}

/// The handshake behind the greeting, with the flags the client has answered it with.
pub(super) fn negotiate_greeted<'a, S: Read + Write>(
    stream: &mut S,
    flags: u32,
    exports: &'a [Export],
    client: &Client,
) -> io::Result<Option<Agreed<'a>>> {
    let no_zeroes = flags & CLIENT_NO_ZEROES != 0;
    let mut session = Session { stream, exports, client, no_zeroes, structured: false, contexts: None };
    session.run()
}

impl<'a, S: Read + Write> Session<'_, 'a, S> {
    fn run(&mut self) -> io::Result<Option<Agreed<'a>>> {
        loop {
            let (option, len) = read_option_head(self.stream)?;
            if len > NBD_OPTION_BYTES_MAX {
                io::copy(&mut Read::take(&mut *self.stream, len.into()), &mut io::sink())?;
                self.reply(option, reply::ERR_TOO_BIG, b"option too long")?;
                continue;
            }
            let mut data = vec![0; len as usize];
            self.stream.read_exact(&mut data)?;
            match option {
                option::EXPORT_NAME => return self.export_name(&data).map(Some),
                option::ABORT => {
                    // The client may be gone already: it need not wait for this.
                    let _ = self.reply(option, reply::ACK, &[]);
                    return Ok(None);
                }
                option::LIST => self.list(&data)?,
                option::INFO | option::GO => {
                    if let Some(export) = self.info(option, &data)?
                        && option == option::GO
                    {
                        let contexts = self.chosen(export);
                        return Ok(Some(Agreed { export, structured: self.structured, contexts }));
                    }
                }
                option::STRUCTURED_REPLY if data.is_empty() => {
                    self.structured = true;
                    self.reply(option, reply::ACK, &[])?;
                }
                option::STRUCTURED_REPLY => self.reply(option, reply::ERR_INVALID, b"no data expected")?,
                option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta_context(option, &data)?,
                _ => self.reply(option, reply::ERR_UNSUP, b"option not supported")?,
            }
        }
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        write_reply(self.stream, option, kind, data)
    }

    /// The export of that name; the empty name is the first.
    fn find(&self, name: &[u8]) -> Option<&'a Export> {
        if name.is_empty() {
            return self.exports.first();
        }
        self.exports.iter().find(|export| export.name.as_bytes() == name)
    }

    /// Whether the client may have the disk.
    fn admit(&self, export: &Export) -> Result<(), Newcomer> {
        export.device.writers().map_or(Ok(()), |writers| writers.admit(self.client))
    }

    fn export_name(&mut self, name: &[u8]) -> io::Result<Agreed<'a>> {
        let export =
            self.find(name).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such export"))?;
        self.admit(export).map_err(|refused| io::Error::new(io::ErrorKind::PermissionDenied, refused))?;
        let mut out = export.device.size_bytes().to_be_bytes().to_vec();
        out.extend(transmission_flags(export, self.structured).to_be_bytes());
        if !self.no_zeroes {
            out.extend([0; 124]);
        }
        self.stream.write_all(&out)?;
        let contexts = self.chosen(export);
        Ok(Agreed { export, structured: self.structured, contexts })
    }

    fn chosen(&self, export: &Export) -> Vec<Context> {
        let chosen = self.contexts.iter().filter(|(name, _)| *name == export.name);
        chosen.flat_map(|(_, contexts)| contexts.iter().copied()).collect()
    }

    fn list(&mut self, data: &[u8]) -> io::Result<()> {
        if !data.is_empty() {
            return self.reply(option::LIST, reply::ERR_INVALID, b"no data expected");
        }
        for export in self.exports {
            let mut row = (export.name.len() as u32).to_be_bytes().to_vec();
            row.extend(export.name.as_bytes());
            row.extend(description(export).as_bytes());
            self.reply(option::LIST, reply::SERVER, &row)?;
        }
        self.reply(option::LIST, reply::ACK, &[])
    }

    fn info(&mut self, option: u32, data: &[u8]) -> io::Result<Option<&'a Export>> {
        let mut fields = Fields(data);
        let wanted = fields.text().and_then(|name| {
            let count = fields.u16()?;
            let kinds: Option<Vec<u16>> = (0..count).map(|_| fields.u16()).collect();
            kinds.filter(|_| fields.0.is_empty()).map(|kinds| (name, kinds))
        });
        let Some((name, kinds)) = wanted else {
            self.reply(option, reply::ERR_INVALID, b"malformed request")?;
            return Ok(None);
        };
        let Some(export) = self.find(name) else {
            self.reply(option, reply::ERR_UNKNOWN, b"no such export")?;
            return Ok(None);
        };
        if let (option::GO, Err(refused)) = (option, self.admit(export)) {
            self.reply(option, reply::ERR_POLICY, refused.to_string().as_bytes())?;
            return Ok(None);
        }
        let mut row = info::EXPORT.to_be_bytes().to_vec();
        row.extend(export.device.size_bytes().to_be_bytes());
        row.extend(transmission_flags(export, self.structured).to_be_bytes());
        self.reply(option, reply::INFO, &row)?;
        let mut row = info::BLOCK_SIZE.to_be_bytes().to_vec();
        [1u32, 4096, NBD_REQUEST_BYTES_MAX].iter().for_each(|size| row.extend(size.to_be_bytes()));
        self.reply(option, reply::INFO, &row)?;
        for (kind, text) in [(info::NAME, &export.name), (info::DESCRIPTION, &description(export))] {
            if kinds.contains(&kind) {
                let row = [&kind.to_be_bytes(), text.as_bytes()].concat();
                self.reply(option, reply::INFO, &row)?;
            }
        }
        self.reply(option, reply::ACK, &[])?;
        Ok(Some(export))
    }

    fn meta_context(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        if !self.structured {
            return self.reply(option, reply::ERR_INVALID, b"structured replies come first");
        }
        let mut fields = Fields(data);
        let asked = fields.text().and_then(|name| {
            let count = fields.u32()?;
            let queries: Option<Vec<&[u8]>> = (0..count).map(|_| fields.text()).collect();
            queries.filter(|_| fields.0.is_empty()).map(|queries| (name, queries))
        });
        let Some((name, queries)) = asked else {
            return self.reply(option, reply::ERR_INVALID, b"malformed request");
        };
        let Some(export) = self.find(name) else {
            return self.reply(option, reply::ERR_UNKNOWN, b"no such export");
        };
        let listing = option == option::LIST_META_CONTEXT;
        let has = |context: &Context| match context {
            Context::Allocation => true,
            Context::Unsent => export.device.unsent(ByteRange::new(0, 0), 1).is_some(),
        };
        // Listing, no query asks for all, and a namespace for what is in it.
        let wanted = |context: &Context| {
            let name = context.name();
            let namespace = &name[..=name.find(':').expect("a context has a namespace")];
            (listing && queries.is_empty())
                || queries.contains(&name.as_bytes())
                || (listing && queries.contains(&namespace.as_bytes()))
        };
        let found: Vec<Context> =
            Context::ALL.into_iter().filter(|context| has(context) && wanted(context)).collect();
        for context in &found {
            let id = if listing { 0 } else { context.id() };
            let row = [&id.to_be_bytes(), context.name().as_bytes()].concat();
            self.reply(option, reply::META_CONTEXT, &row)?;
        }
        if !listing {
            self.contexts = Some((export.name.clone(), found));
        }
        self.reply(option, reply::ACK, &[])
    }
}

/// What the export is, and who has it.
fn description(export: &Export) -> String {
    let owner = export.device.writers().and_then(|writers| writers.owner());
    match owner {
        Some(owner) => format!("{}; {owner} writes to it, and others can only read", export.description),
        None => export.description.clone(),
    }
}

fn transmission_flags(export: &Export, structured: bool) -> u16 {
    let mut flags = transmission::HAS_FLAGS
        | transmission::SEND_FLUSH
        | transmission::CAN_MULTI_CONN
        | transmission::SEND_CACHE;
    if export.device.is_read_only() {
        flags |= transmission::READ_ONLY;
    } else {
        flags |= transmission::SEND_FUA
            | transmission::SEND_TRIM
            | transmission::SEND_WRITE_ZEROES
            | transmission::SEND_FAST_ZERO;
    }
    if structured {
        flags |= transmission::SEND_DF;
    }
    flags
}
