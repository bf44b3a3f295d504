//! A cable from this machine to a host of its own, which can be pulled: then neither end hears that the other is gone.

use crate::guest_files::run_quietly;
use crate::namespace::Namespace;
use anyhow::Result;
use std::process::Command;

/// A laid cable. Nothing is left of it once it is dropped.
#[derive(Debug)]
pub struct Cable {
    /// The network device at this end.
    device: String,
    here: String,
}

impl Cable {
    /// Lays one, with an address at either end. No other process lays one of the same name or network.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn lay_to(host: &Namespace) -> Result<Self> {
        let pid = host.pid();
        // Four addresses of 198.18.0.0/15, which no network of anybody's uses (RFC 2544).
        let of = |at: u32| {
            let address = std::net::Ipv4Addr::from(0xc612_0000 + (pid % 0x8000) * 4 + at);
            address.to_string()
        };
        let cable = Self { device: format!("hf-{pid}"), here: of(1) };
        let number = pid.to_string();
        ip(&["link", "add", &cable.device, "type", "veth", "peer", "name", "cable", "netns", &number])?;
        ip(&["address", "add", &format!("{}/30", cable.here), "dev", &cable.device])?;
        ip(&["link", "set", &cable.device, "up"])?;
        run_quietly(host.command("ip").args(["address", "add", &format!("{}/30", of(2)), "dev", "cable"]))?;
        run_quietly(host.command("ip").args(["link", "set", "cable", "up"]))?;
        Ok(cable)
    }

    /// The address of this machine.
    pub fn here(&self) -> &str {
        &self.here
    }

    /// Pulls it at the other end: what either end sends is lost from here on.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn pull(&self, host: &Namespace) -> Result<()> {
        run_quietly(host.command("ip").args(["link", "set", "cable", "down"]))
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        // It goes with its other end, if that has gone already.
        let _ = ip(&["link", "delete", &self.device]);
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    run_quietly(Command::new("ip").args(arguments))
}
