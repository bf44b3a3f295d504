//! A link between two agents: what is said goes through this process, which can cut it, let it stand still, and mend it. No
//! root and no firewall is needed, and each link is one of its own.

use crate::ports::free_port;
use anyhow::{Context, Result};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// What the link does with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    Whole,
    /// Connections end, and new ones are hung up on.
    Cut,
    /// Nothing passes, and nobody is told.
    Still,
    Over,
}

/// A link. It is cut for good when dropped.
#[derive(Debug)]
pub struct Link {
    port: u16,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    course: Mutex<Course>,
    changed: Condvar,
    /// Both ends of each connection, dead ones too until the next comes.
    open: Mutex<Vec<(TcpStream, TcpStream)>>,
    to: u16,
}

impl Link {
    /// A link to a port of this machine.
    ///
    /// # Errors
    /// Where there is no port for it.
    pub fn to(port: u16) -> Result<Self> {
        let own = free_port()?;
        let listener = TcpListener::bind(("127.0.0.1", own)).context("listen for a link")?;
        let state = Arc::new(State {
            course: Mutex::new(Course::Whole),
            changed: Condvar::new(),
            open: Mutex::default(),
            to: port,
        });
        let accepting = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                match accepting.course() {
                    Course::Over => return,
                    Course::Cut => {}
                    // Where it cannot be connected, both ends see that.
                    Course::Whole | Course::Still => drop(stream.map(|stream| accepting.join(stream))),
                }
            }
        });
        Ok(Self { port: own, state })
    }

    /// What to give as the other's address.
    pub fn peer(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Ends every connection, and lets none through.
    pub fn cut(&self) {
        self.state.turn(Course::Cut);
        self.state.hang_up();
    }

    /// Lets nothing through, as a router does that has lost its way: nobody is told.
    pub fn stand_still(&self) {
        self.state.turn(Course::Still);
    }

    /// Lets everything through again.
    pub fn mend(&self) {
        self.state.turn(Course::Whole);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.state.turn(Course::Over);
        self.state.hang_up();
        // So that the thread that accepts sees it.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// No thread of a link panics while it holds one of its locks.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl State {
    fn course(&self) -> Course {
        *locked(&self.course)
    }

    fn turn(&self, course: Course) {
        *locked(&self.course) = course;
        self.changed.notify_all();
    }

    fn hang_up(&self) {
        for (one, other) in locked(&self.open).drain(..) {
            let _ = one.shutdown(Shutdown::Both);
            let _ = other.shutdown(Shutdown::Both);
        }
    }

    /// Carries what is said on one connection, in both directions.
    fn join(self: &Arc<Self>, from: TcpStream) -> Result<()> {
        let to = TcpStream::connect(("127.0.0.1", self.to)).context("connect to the other end")?;
        for stream in [&from, &to] {
            stream.set_nodelay(true).context("set TCP_NODELAY")?;
        }
        let both = || anyhow::Ok((from.try_clone()?, to.try_clone()?));
        let (there, back, kept) = (both()?, both()?, both()?);
        let mut open = locked(&self.open);
        open.retain(|(one, _)| one.peer_addr().is_ok());
        open.push(kept);
        drop(open);
        let (state, other) = (self.clone(), self.clone());
        std::thread::spawn(move || state.carry(there.0, there.1));
        std::thread::spawn(move || other.carry(back.1, back.0));
        // It may have been cut meanwhile.
        if matches!(self.course(), Course::Cut | Course::Over) {
            self.hang_up();
        }
        Ok(())
    }

    fn carry(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buf = vec![0; 64 << 10];
        while let Ok(len @ 1..) = from.read(&mut buf) {
            let still = |course: &mut Course| *course == Course::Still;
            let course = self.changed.wait_while(locked(&self.course), still);
            drop(course);
            if to.write_all(&buf[..len]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A server that says back what it hears.
    fn echo() -> u16 {
        let port = free_port().unwrap();
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
                });
            }
        });
        port
    }

    fn says_back(stream: &mut TcpStream, byte: u8) -> bool {
        let mut found = [0];
        stream.write_all(&[byte]).is_ok() && stream.read_exact(&mut found).is_ok() && found == [byte]
    }

    #[test]
    fn a_link_carries_is_cut_stands_still_and_is_mended() {
        let link = Link::to(echo()).unwrap();
        let connect = || TcpStream::connect(link.peer()).unwrap();
        let (mut one, mut two) = (connect(), connect());
        assert!(says_back(&mut one, 1) && says_back(&mut two, 2));
        link.cut();
        assert!(!says_back(&mut one, 3) && !says_back(&mut two, 3));
        assert!(!says_back(&mut connect(), 3));
        link.mend();
        let mut one = connect();
        assert!(says_back(&mut one, 4));
        link.stand_still();
        one.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(!says_back(&mut one, 5));
        link.mend();
        one.set_read_timeout(None).unwrap();
        let mut found = [0];
        one.read_exact(&mut found).unwrap();
        assert_eq!(found, [5], "what was said meanwhile comes");
    }
}
