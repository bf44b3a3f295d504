//! The beginning of a connection that is only served behind TLS: everything but STARTTLS is refused.

use super::protocol::*;
use std::io::{self, Read, Write};
use types::limits::NBD_OPTION_BYTES_MAX;

/// Options a client may try before it says STARTTLS.
const OPTIONS_MAX: usize = 32;

/// Greets and waits for STARTTLS, which is acknowledged: TLS begins with the next byte. The client's flags, for
/// [`super::serve_greeted`]; none where the client leaves.
///
/// # Errors
/// Where the client does not follow the protocol, or does not want TLS.
pub fn before_tls<S: Read + Write>(stream: &mut S) -> io::Result<Option<u32>> {
    let flags = greet(stream)?;
    for _ in 0..OPTIONS_MAX {
        let (option, len) = read_option_head(stream)?;
        if len > NBD_OPTION_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an option too long"));
        }
        io::copy(&mut Read::take(&mut *stream, len.into()), &mut io::sink())?;
        match option {
            option::STARTTLS if len == 0 => {
                write_reply(stream, option, reply::ACK, &[])?;
                return Ok(Some(flags));
            }
            option::STARTTLS => write_reply(stream, option, reply::ERR_INVALID, b"no data expected")?,
            option::ABORT => {
                let _ = write_reply(stream, option, reply::ACK, &[]);
                return Ok(None);
            }
            // There is no answer to this one but to hang up.
            option::EXPORT_NAME => return Ok(None),
            _ => write_reply(stream, option, reply::ERR_TLS_REQD, b"this server speaks TLS only")?,
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the client does not begin TLS"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn everything_before_tls_is_refused_but_starttls() {
        let (mut client, mut server) = UnixStream::pair().unwrap();
        let greeting = std::thread::spawn(move || before_tls(&mut server));
        let mut hello = [0; 18];
        client.read_exact(&mut hello).unwrap();
        client.write_all(&1u32.to_be_bytes()).unwrap();
        for (asked, answer) in [
            (option::LIST, reply::ERR_TLS_REQD),
            (option::GO, reply::ERR_TLS_REQD),
            (option::STARTTLS, reply::ACK),
        ] {
            client.write_all(&OPTION_MAGIC.to_be_bytes()).unwrap();
            client.write_all(&asked.to_be_bytes()).unwrap();
            client.write_all(&0u32.to_be_bytes()).unwrap();
            let mut head = [0; 20];
            client.read_exact(&mut head).unwrap();
            assert_eq!(head[12..16], answer.to_be_bytes());
            let len = u32::from_be_bytes(head[16..20].try_into().unwrap());
            client.read_exact(&mut vec![0; len as usize]).unwrap();
        }
        assert_eq!(greeting.join().unwrap().unwrap(), Some(1));
    }
}
