//! The beginning of a connection that is only served behind TLS: everything but STARTTLS is refused.
//!
//! Whoever reaches the port gets so far, so it costs no thread: this takes bytes and gives bytes, and its caller reads no
//! byte more than is wanted, for what follows STARTTLS belongs to TLS.

use super::protocol::*;
use std::io;
use types::limits::NBD_OPTION_BYTES_MAX;

/// Options a client may try before it says STARTTLS.
const OPTIONS_MAX: usize = 32;

/// A client that has been greeted and has not begun TLS.
#[derive(Debug)]
pub struct BeforeTls {
    awaited: Awaited,
    flags: u32,
    options: usize,
}

/// ```text
/// Flags ─▶ Head ◀─▶ Data      (STARTTLS, ABORT and EXPORT_NAME end it)
/// ```
#[derive(Debug, Clone, Copy)]
enum Awaited {
    Flags,
    Head,
    /// So many bytes of an option's data, which are passed over.
    Data {
        option: u32,
        left: u32,
    },
}

/// What the client is told, and how it goes on.
#[derive(Debug)]
pub struct Step {
    pub reply: Vec<u8>,
    pub next: Next,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    More,
    /// TLS begins with the next byte. These are the client's flags, for [`super::serve_greeted`].
    Tls {
        flags: u32,
    },
    /// The client leaves, or has asked for what has no answer but to hang up.
    Leave,
}

impl BeforeTls {
    /// At most so many bytes are wanted at once.
    pub const WANTS_MAX: usize = 4096;

    /// A new connection, and what the client is told first.
    pub fn begin() -> (Self, Vec<u8>) {
        (Self { awaited: Awaited::Flags, flags: 0, options: 0 }, hello().to_vec())
    }

    /// How many bytes [`BeforeTls::take`] takes next, 1 to [`BeforeTls::WANTS_MAX`].
    pub fn wants(&self) -> usize {
        match self.awaited {
            Awaited::Flags => 4,
            Awaited::Head => OPTION_HEAD_BYTES,
            Awaited::Data { left, .. } => (left as usize).min(Self::WANTS_MAX),
        }
    }

    /// Takes as many bytes as are wanted.
    ///
    /// # Errors
    /// Where the client does not follow the protocol, or does not want TLS.
    pub fn take(&mut self, bytes: &[u8]) -> io::Result<Step> {
        assert_eq!(bytes.len(), self.wants(), "as many as are wanted");
        let more = Step { reply: Vec::new(), next: Next::More };
        match self.awaited {
            Awaited::Flags => {
                self.flags = client_flags(bytes.try_into().expect("four bytes"))?;
                self.awaited = Awaited::Head;
                Ok(more)
            }
            Awaited::Head => {
                let (option, len) = read_option_head(&mut &*bytes)?;
                self.options += 1;
                if len > NBD_OPTION_BYTES_MAX {
                    return Err(invalid("an option too long"));
                }
                if self.options > OPTIONS_MAX {
                    return Err(invalid("the client does not begin TLS"));
                }
                if len == 0 {
                    return answer(option, true, self.flags);
                }
                self.awaited = Awaited::Data { option, left: len };
                Ok(more)
            }
            Awaited::Data { option, left } => {
                let left = left - bytes.len() as u32;
                if left > 0 {
                    self.awaited = Awaited::Data { option, left };
                    return Ok(more);
                }
                self.awaited = Awaited::Head;
                answer(option, false, self.flags)
            }
        }
    }
}

fn answer(option: u32, is_bare: bool, flags: u32) -> io::Result<Step> {
    let (next, told) = match option {
        option::STARTTLS if is_bare => (Next::Tls { flags }, Some((reply::ACK, &b""[..]))),
        option::STARTTLS => (Next::More, Some((reply::ERR_INVALID, &b"no data expected"[..]))),
        option::ABORT => (Next::Leave, Some((reply::ACK, &b""[..]))),
        option::EXPORT_NAME => (Next::Leave, None),
        _ => (Next::More, Some((reply::ERR_TLS_REQD, &b"this server speaks TLS only"[..]))),
    };
    let mut reply = Vec::new();
    if let Some((kind, text)) = told {
        write_reply(&mut reply, option, kind, text)?;
    }
    Ok(Step { reply, next })
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(option: u32, data: &[u8]) -> Vec<u8> {
        let mut out = OPTION_MAGIC.to_be_bytes().to_vec();
        out.extend(option.to_be_bytes());
        out.extend((data.len() as u32).to_be_bytes());
        out.extend(data);
        out
    }

    /// What a client hears that says this after its flags.
    fn hears(mut said: &[u8]) -> io::Result<(Vec<u32>, Next)> {
        let (mut greeting, hello) = BeforeTls::begin();
        assert_eq!(hello.len(), 18);
        greeting.take(&1u32.to_be_bytes())?;
        let mut heard = Vec::new();
        loop {
            let wanted = greeting.wants();
            if said.len() < wanted {
                return Ok((heard, Next::More));
            }
            let step = greeting.take(&said[..wanted])?;
            said = &said[wanted..];
            if !step.reply.is_empty() {
                heard.push(u32::from_be_bytes(step.reply[12..16].try_into().unwrap()));
            }
            if step.next != Next::More {
                assert!(said.is_empty(), "what follows is not ours to read");
                return Ok((heard, step.next));
            }
        }
    }

    #[test]
    fn everything_before_tls_is_refused_but_starttls() {
        let long = vec![7; NBD_OPTION_BYTES_MAX as usize];
        let said =
            [option(option::LIST, &[]), option(option::GO, &long), option(option::STARTTLS, &[])].concat();
        let tls = Next::Tls { flags: 1 };
        assert_eq!(hears(&said).unwrap(), (vec![reply::ERR_TLS_REQD, reply::ERR_TLS_REQD, reply::ACK], tls));
        let with_data = option(option::STARTTLS, &[1]);
        assert_eq!(hears(&with_data).unwrap(), (vec![reply::ERR_INVALID], Next::More));
        assert_eq!(hears(&option(option::EXPORT_NAME, b"web/vda")).unwrap(), (vec![], Next::Leave));
        assert_eq!(hears(&option(option::ABORT, &[])).unwrap(), (vec![reply::ACK], Next::Leave));
    }

    #[test]
    fn a_client_that_never_begins_tls_or_says_too_much_is_left() {
        assert!(hears(&option(option::LIST, &[]).repeat(OPTIONS_MAX + 1)).is_err());
        let too_long =
            [OPTION_MAGIC.to_be_bytes().to_vec(), vec![0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff]].concat();
        assert!(hears(&too_long).is_err());
        assert!(hears(&[0; OPTION_HEAD_BYTES]).is_err());
    }
}
