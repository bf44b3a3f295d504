//! Clients that write as fast as they are let, and say how fast that was.

use super::Workload;
use crate::clock::Moment;
use crate::load::Draw;
use anyhow::{Context, Result, bail};
use blkio::{Blkio, Blkioq, Completion, ReqFlags};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::mem::MaybeUninit;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// What a client saw.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Sample {
    pub(super) per_second: f64,
    pub(super) p50_micros: f64,
    pub(super) p99_micros: f64,
}

/// fio, as a client of NBD.
pub(super) fn over_nbd(uri: &str, workload: &Workload, seconds: f64) -> Result<Sample> {
    fio(&["--ioengine=nbd".to_owned(), format!("--uri={uri}")], workload, seconds)
}

/// fio on a file itself, with direct I/O.
pub(super) fn on_file(path: &Path, workload: &Workload, seconds: f64) -> Result<Sample> {
    let file = format!("--filename={}", path.display());
    fio(&["--ioengine=io_uring".to_owned(), "--direct=1".to_owned(), file], workload, seconds)
}

fn fio(target: &[String], workload: &Workload, seconds: f64) -> Result<Sample> {
    let mut command = Command::new("fio");
    command.args(["--name=bench", "--thread", "--output-format=json", "--time_based"]).args(target);
    command.args(["--norandommap", "--randrepeat=0", "--size=2G"]);
    // A part of a second alone would be none, which is no end.
    command.arg(format!("--runtime={:.0}ms", seconds * 1e3));
    command.arg(format!("--rw={}", if workload.random { "randwrite" } else { "write" }));
    command.arg(format!("--bs={}", workload.block_bytes)).arg(format!("--iodepth={}", workload.depth));
    let output = command.output().context("run fio; is it installed?")?;
    if !output.status.success() {
        bail!("fio: {}", String::from_utf8_lossy(&output.stderr));
    }
    // It may say something in front of the object.
    let text = String::from_utf8_lossy(&output.stdout);
    let object = &text[text.find('{').context("fio says no JSON")?..];
    let found: Value = serde_json::from_str(object).context("read what fio says")?;
    let write = &found["jobs"][0]["write"];
    let micros =
        |percentile: &str| write["clat_ns"]["percentile"][percentile].as_f64().map(|nanos| nanos / 1e3);
    Ok(Sample {
        per_second: write["iops"].as_f64().context("fio says no rate")?,
        p50_micros: micros("50.000000").context("fio says no latency")?,
        p99_micros: micros("99.000000").context("fio says no latency")?,
    })
}

/// A process of this program as a client of vhost-user.
pub(super) fn over_vhost_user(socket: &str, workload: &Workload, seconds: f64) -> Result<Sample> {
    let program = std::env::current_exe().context("find this program")?;
    let kind = if workload.random { "random" } else { "sequential" };
    let arguments =
        [socket, kind, &workload.block_bytes.to_string(), &workload.depth.to_string(), &seconds.to_string()];
    let output =
        Command::new(program).arg("--generate").args(arguments).output().context("start a client")?;
    if !output.status.success() {
        bail!("a vhost-user client: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("read what the client says")
}

/// As [`over_vhost_user`], with a server that may hang up on a client while it is not yet done with the one before.
pub(super) fn over_vhost_user_patiently(socket: &str, workload: &Workload, seconds: f64) -> Result<Sample> {
    for _ in 0..5 {
        if let Ok(sample) = over_vhost_user(socket, workload, seconds) {
            return Ok(sample);
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    over_vhost_user(socket, workload, seconds)
}

/// That process: writes to a socket and prints its sample.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [socket, kind, block_bytes, depth, seconds] = arguments else { bail!("five arguments") };
    let random = kind == "random";
    let block_bytes: usize = block_bytes.parse()?;
    let sample = generate(socket, random, block_bytes, depth.parse()?, seconds.parse()?)?;
    println!("{}", serde_json::to_string(&sample)?);
    Ok(())
}

fn generate(socket: &str, random: bool, block_bytes: usize, depth: usize, seconds: f64) -> Result<Sample> {
    let mut device = Blkio::new("virtio-blk-vhost-user")?;
    device.set_str("path", socket)?;
    device.connect()?;
    let blocks = device.get_u64("capacity")? / block_bytes as u64;
    device.set_i32("num-queues", 1)?;
    let align = device.get_u64("mem-region-alignment")? as usize;
    let mut started = device.start()?;
    let region = device.alloc_mem_region((block_bytes * depth).next_multiple_of(align))?;
    device.map_mem_region(&region)?;
    // SAFETY: the region was allocated with this length, and requests only read it.
    let memory = unsafe { std::slice::from_raw_parts_mut(region.addr as *mut u8, region.len) };
    memory.copy_from_slice(&Draw::new(7).noise(region.len));
    let queue = &mut started.queues[0];
    let mut client = Client {
        memory,
        block_bytes,
        draw: Draw::new(9),
        next_block: 0,
        blocks,
        random,
        begun: vec![Moment::now(); depth],
    };
    let mut completions: Vec<MaybeUninit<Completion>> = (0..depth).map(|_| MaybeUninit::uninit()).collect();
    let mut micros: Vec<f64> = Vec::new();
    let start = Moment::now();
    (0..depth).for_each(|slot| client.write(queue, slot));
    let mut in_flight = depth;
    while in_flight > 0 {
        let ended = queue.do_io(&mut completions, 1, None, None)?;
        for completion in &completions[..ended] {
            // SAFETY: `do_io` has filled so many.
            let completion = unsafe { completion.assume_init_ref() };
            if completion.ret != 0 {
                bail!("a write ended with {}", completion.ret);
            }
            micros.push(client.begun[completion.user_data].elapsed() * 1e6);
            if start.elapsed() < seconds {
                client.write(queue, completion.user_data);
            } else {
                in_flight -= 1;
            }
        }
    }
    let per_second = micros.len() as f64 / start.elapsed();
    micros.sort_by(f64::total_cmp);
    let percentile = |part: usize| micros[micros.len() * part / 100];
    Ok(Sample { per_second, p50_micros: percentile(50), p99_micros: percentile(99) })
}

struct Client<'a> {
    memory: &'a mut [u8],
    block_bytes: usize,
    draw: Draw,
    next_block: u64,
    blocks: u64,
    random: bool,
    begun: Vec<Moment>,
}

impl Client<'_> {
    /// Begins a write from a slot's memory, every page of which is new, so that nothing is sent as a repetition.
    fn write(&mut self, queue: &mut Blkioq, slot: usize) {
        let bytes = &mut self.memory[slot * self.block_bytes..(slot + 1) * self.block_bytes];
        for page in bytes.chunks_mut(4096) {
            page[..8].copy_from_slice(&self.draw.next().to_le_bytes());
        }
        let block = if self.random { self.draw.below(self.blocks) } else { self.next_block % self.blocks };
        self.next_block += 1;
        self.begun[slot] = Moment::now();
        queue.write(block * self.block_bytes as u64, bytes.as_ptr(), bytes.len(), slot, ReqFlags::empty());
    }
}
