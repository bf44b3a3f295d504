//! A client: the disk of a VM that runs on its own image, read through its hypervisor's export.
//!
//! One request at a time, structured replies, one context. A server that does not follow the protocol is an error.

use super::protocol::*;
use crate::peer_process::peer_process;
use crate::writers;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use types::ByteRange;
use types::limits::{NBD_OPTION_BYTES_MAX, NBD_REPLY_PATIENCE};

/// The longest error message or list of extents that is believed, in bytes.
const CHUNK_BYTES_MAX: u32 = 1 << 20;

/// A connection to an export.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    size_bytes: u64,
    cookie: u64,
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the NBD server does not follow the protocol: {what}"))
}

impl Client {
    /// Connects to an export, and has block status tell of `context`. Only `process` may be the one that serves it;
    /// where that is not known, whoever listens there.
    ///
    /// # Errors
    /// Where another process listens there, nobody answers in time, or there is no such export or context.
    pub fn connect(socket: &Path, process: Option<u32>, export: &str, context: &str) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        if let Some(process) = process
            && peer_process(&stream) != Some(process)
        {
            let (peer, socket) = (writers::Client::of_process(&stream), socket.display());
            return Err(io::Error::other(format!(
                "{peer} listens at {socket} where process {process} should, the VM's hypervisor: nothing is read from \
                 it. End it, and look who may write to that folder"
            )));
        }
        stream.set_read_timeout(Some(NBD_REPLY_PATIENCE))?;
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        let mut client = Self { stream, size_bytes: 0, cookie: 0 };
        let mut greeting = [0; 18];
        client.stream.read_exact(&mut greeting)?;
        let mut fields = Fields(&greeting);
        if fields.u64() != Some(INIT_MAGIC) || fields.u64() != Some(OPTION_MAGIC) {
            return Err(broken("no newstyle greeting"));
        }
        client.stream.write_all(&u32::from(HANDSHAKE_FLAGS).to_be_bytes())?;
        client.option(option::STRUCTURED_REPLY, &[], |_, _| Ok(()))?;
        let text = |text: &str| [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
        let mut query = text(export);
        query.extend(1u32.to_be_bytes());
        query.extend(text(context));
        let mut has_context = false;
        client.option(option::SET_META_CONTEXT, &query, |kind, _| {
            has_context |= kind == reply::META_CONTEXT;
            Ok(())
        })?;
        if !has_context {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("export {export} has no {context}")));
        }
        let mut wanted = text(export);
        wanted.extend(0u16.to_be_bytes());
        let mut size = None;
        client.option(option::GO, &wanted, |kind, data| {
            let mut fields = Fields(data);
            if kind == reply::INFO && fields.u16() == Some(info::EXPORT) {
                size = fields.u64();
            }
            Ok(())
        })?;
        client.size_bytes = size.ok_or_else(|| broken("an export without a size"))?;
        Ok(client)
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Says an option and hears its replies until it is acknowledged.
    fn option(
        &mut self,
        option: u32,
        data: &[u8],
        mut told: impl FnMut(u32, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut out = OPTION_MAGIC.to_be_bytes().to_vec();
        out.extend(option.to_be_bytes());
        out.extend((data.len() as u32).to_be_bytes());
        out.extend(data);
        self.stream.write_all(&out)?;
        loop {
            let mut head = [0; 20];
            self.stream.read_exact(&mut head)?;
            let mut fields = Fields(&head);
            let magic = fields.u64();
            let (of, kind) = (fields.u32().expect("20 bytes"), fields.u32().expect("20 bytes"));
            let len = fields.u32().expect("20 bytes");
            if magic != Some(OPTION_REPLY_MAGIC) || of != option || len > NBD_OPTION_BYTES_MAX {
                return Err(broken("a reply to another option"));
            }
            let mut data = vec![0; len as usize];
            self.stream.read_exact(&mut data)?;
            match kind {
                reply::ACK => return Ok(()),
                error if error & 1 << 31 != 0 => {
                    let said = String::from_utf8_lossy(&data);
                    return Err(io::Error::other(format!("the NBD server refuses option {option}: {said}")));
                }
                other => told(other, &data)?,
            }
        }
    }

    fn request(&mut self, command: u16, range: ByteRange) -> io::Result<()> {
        self.cookie += 1;
        let mut out = REQUEST_MAGIC.to_be_bytes().to_vec();
        out.extend(0u16.to_be_bytes());
        out.extend(command.to_be_bytes());
        out.extend(self.cookie.to_be_bytes());
        out.extend(range.start.to_be_bytes());
        out.extend((range.len as u32).to_be_bytes());
        self.stream.write_all(&out)
    }

    /// The head of the next chunk: whether it is the last, its kind and length.
    fn chunk(&mut self) -> io::Result<(bool, u16, u32)> {
        let mut head = [0; 20];
        self.stream.read_exact(&mut head)?;
        let mut fields = Fields(&head);
        let magic = fields.u32();
        let (flags, kind) = (fields.u16().expect("20 bytes"), fields.u16().expect("20 bytes"));
        let (cookie, len) = (fields.u64().expect("20 bytes"), fields.u32().expect("20 bytes"));
        if magic != Some(STRUCTURED_REPLY_MAGIC) || cookie != self.cookie {
            return Err(broken("a reply to nothing that was asked"));
        }
        Ok((flags & chunk::DONE != 0, kind, len))
    }

    fn data(&mut self, len: u32) -> io::Result<Vec<u8>> {
        if len > CHUNK_BYTES_MAX {
            return Err(broken("a chunk too long"));
        }
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    /// Fills `buf` from `at`.
    ///
    /// # Errors
    /// As the server says. The connection is of no use any more where it was not the server that said so.
    pub fn read(&mut self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.request(command::READ, ByteRange::new(at, buf.len() as u64))?;
        let total = buf.len() as u64;
        let place = move |offset: u64, len: u64| {
            let from = offset.checked_sub(at).filter(|from| ByteRange::new(*from, len).fits(total));
            from.map(|from| from as usize).ok_or_else(|| broken("data of elsewhere"))
        };
        let (mut filled, mut failed) = (0, None);
        loop {
            let (last, kind, len) = self.chunk()?;
            match kind {
                chunk::NONE if len == 0 => {}
                chunk::OFFSET_DATA if len > 8 => {
                    let offset = u64::from_be_bytes(self.data(8)?.try_into().expect("eight bytes"));
                    let (from, len) = (place(offset, u64::from(len) - 8)?, len as usize - 8);
                    self.stream.read_exact(&mut buf[from..from + len])?;
                    filled += len;
                }
                chunk::OFFSET_HOLE if len == 12 => {
                    let data = self.data(len)?;
                    let mut fields = Fields(&data);
                    let offset = fields.u64().expect("twelve bytes");
                    let len = fields.u32().expect("twelve bytes") as usize;
                    let from = place(offset, len as u64)?;
                    buf[from..from + len].fill(0);
                    filled += len;
                }
                _ => failed = Some(self.failure(kind, len)?),
            }
            if last {
                break;
            }
        }
        match failed {
            Some(error) => Err(error),
            None if filled != buf.len() => Err(broken("data is missing")),
            None => Ok(()),
        }
    }

    /// What the context tells of a range: lengths and flags from its start on, perhaps not to its end.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub fn block_status(&mut self, range: ByteRange) -> io::Result<Vec<(u64, u32)>> {
        self.request(command::BLOCK_STATUS, range)?;
        let (mut rows, mut failed) = (Vec::new(), None);
        loop {
            let (last, kind, len) = self.chunk()?;
            match kind {
                chunk::NONE if len == 0 => {}
                chunk::BLOCK_STATUS if len > 4 && (len - 4).is_multiple_of(8) => {
                    let data = self.data(len)?;
                    let mut fields = Fields(&data[4..]);
                    while let (Some(len), Some(flags)) = (fields.u32(), fields.u32()) {
                        rows.push((u64::from(len), flags));
                    }
                }
                _ => failed = Some(self.failure(kind, len)?),
            }
            if last {
                break;
            }
        }
        match failed {
            Some(error) => Err(error),
            None if rows.iter().all(|(len, _)| *len == 0) => Err(broken("status of nothing")),
            None => Ok(rows),
        }
    }

    /// What an error chunk says.
    fn failure(&mut self, kind: u16, len: u32) -> io::Result<io::Error> {
        let data = self.data(len)?;
        if kind & chunk::IS_ERROR == 0 {
            return Err(broken("a chunk of an unknown kind"));
        }
        let errno = Fields(&data).u32().unwrap_or(errno::EIO);
        Ok(io::Error::from_raw_os_error(errno.cast_signed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::{Export, Server};
    use crate::{BlockDevice, Extent, ExtentKind};
    use bytes::Bytes;
    use std::sync::Arc;

    /// Its second half is a hole.
    struct Half;

    const SIZE: u64 = 1 << 20;

    impl BlockDevice for Half {
        fn size_bytes(&self) -> u64 {
            SIZE
        }
        fn is_read_only(&self) -> bool {
            true
        }
        fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
            if at == 4096 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            buf.fill((at >> 16) as u8);
            Ok(())
        }
        fn write(&self, _at: u64, _bytes: Bytes) -> io::Result<()> {
            unreachable!("read-only")
        }
        fn write_zeroes(&self, _range: ByteRange, _unmap: bool) -> io::Result<()> {
            unreachable!("read-only")
        }
        fn zeroes_fast(&self) -> bool {
            false
        }
        fn cache(&self, _range: ByteRange) -> io::Result<()> {
            Ok(())
        }
        fn unsent(&self, _range: ByteRange, _most: usize) -> Option<Vec<(ByteRange, bool)>> {
            None
        }
        fn discard(&self, _range: ByteRange) -> io::Result<()> {
            unreachable!("read-only")
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
        fn extents(&self, _range: ByteRange) -> io::Result<Vec<Extent>> {
            let extent = |start, kind| Extent { range: ByteRange::new(start, SIZE / 2), kind };
            Ok(vec![extent(0, ExtentKind::Data), extent(SIZE / 2, ExtentKind::Hole)])
        }
    }

    #[test]
    fn a_private_server_tells_which_export_was_left() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("nbd.sock");
        let export =
            |name: &str| Export { name: name.into(), description: String::new(), device: Arc::new(Half) };
        let (tell, told) = std::sync::mpsc::channel();
        let left = Box::new(move |at| tell.send(at).unwrap());
        let private = crate::nbd::Private { process: None, left };
        let server = Server::bind_private(&socket, vec![export("vda"), export("vdb")], private).unwrap();
        drop(UnixStream::connect(&socket).unwrap());
        drop(Client::connect(&socket, None, "vdb", "base:allocation").unwrap());
        assert_eq!(told.recv(), Ok(1));
        drop(server);
        assert!(told.try_recv().is_err(), "who picked none has left nothing");
    }

    #[test]
    fn the_client_reads_what_the_server_serves() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("nbd.sock");
        let export = Export { name: "vda".into(), description: String::new(), device: Arc::new(Half) };
        let _server = Server::bind(&socket, vec![export]).unwrap();
        let this = Some(std::process::id());
        let mut client = Client::connect(&socket, this, "vda", "base:allocation").unwrap();
        assert_eq!(client.size_bytes(), SIZE);
        let mut bytes = vec![0; 65536];
        client.read(3 << 16, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 3));
        assert_eq!(client.read(4096, &mut bytes).unwrap_err().kind(), io::ErrorKind::StorageFull);
        let status = client.block_status(ByteRange::new(0, SIZE)).unwrap();
        assert_eq!(status, vec![(SIZE / 2, 0), (SIZE / 2, STATE_HOLE_ZERO)]);
        let refused =
            |export, context| Client::connect(&socket, this, export, context).unwrap_err().to_string();
        assert!(refused("vdb", "base:allocation").contains("refuses"));
        assert!(refused("vda", "qemu:dirty-bitmap:b").contains("has no"));
        let other = Client::connect(&socket, Some(1), "vda", "base:allocation").unwrap_err().to_string();
        assert!(other.contains("where process 1 should"), "{other}");
    }
}
