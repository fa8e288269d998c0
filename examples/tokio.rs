//! Three guests on one thread of a service that runs on tokio: followed, read from and written to, limited in time,
//! measured, and asked to end.
//!
//! `cargo run --release --example tokio`: each guest, a few instructions, says hello on its serial port. One powers off
//! by itself. One hangs, and its time limit stops it. One serves until it is sent a key, which Ctrl-C does.

#[cfg(target_arch = "aarch64")]
#[path = "tokio/aarch64.rs"]
mod code;
#[cfg(target_arch = "x86_64")]
#[path = "tokio/x86_64.rs"]
mod code;
#[cfg(target_arch = "aarch64")]
#[path = "platform/aarch64.rs"]
mod platform;
#[cfg(target_arch = "x86_64")]
#[path = "platform/x86_64.rs"]
mod platform;

use std::error::Error;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream as StdStream;
use std::pin::pin;
use std::time::Duration;

use ossature::boot::Platform;
use ossature::bus::EventLoop;
use ossature::legacy::backend;
use ossature::memory::vm_memory::{Bytes, GuestAddress};
use ossature::memory::{GuestMmap, RamConfig};
use ossature::vmm::machine::{EventReporter, Machine, MachineEvent, Outcome, PollableEvents, Severity};
use ossature::vmm::{Failure, Kvm};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::{runtime, signal, task, time};

const CODE: u16 = 0x1000;
const TEXT: GuestAddress = GuestAddress(0x2000);
const HELLO: &[u8] = b"hello\n";
/// How long a guest that is asked to end may take.
const GRACE: Duration = Duration::from_secs(30);

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// A guest to run.
struct Job {
    name: &'static str,
    code: Vec<u8>,
    limit: Duration,
}

impl Job {
    fn new(name: &'static str, then: &[&[code::Unit]], limit: Duration) -> Self {
        Self { name, code: code::bytes(&[&[code::SAY_HELLO], then].concat().concat()), limit }
    }

    /// The machine, and our end of its serial line.
    fn build(&self, kvm: &Kvm, devices: &EventLoop) -> Result<(Machine, UnixStream)> {
        let (ours, guests) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        let code = self.code.clone();
        let machine = Machine::builder(self.name)
            .memory(RamConfig::new(2 << 20))
            .device(platform::serial(backend::stream(guests)?).on(devices))
            .device(platform::power())
            .payload(move |memory: &GuestMmap, machine: &Platform| {
                memory.write_slice(HELLO, TEXT)?;
                memory.write_slice(&code, GuestAddress(CODE.into()))?;
                Ok(platform::start(CODE, machine))
            })
            .build(kvm)?;
        Ok((machine, UnixStream::from_std(ours)?))
    }

    /// Runs the guest until it ends, its time is up, or the service ends; returns how it ended.
    async fn run(self, kvm: Kvm, devices: EventLoop, mut end: watch::Receiver<bool>) -> Result<Outcome> {
        let (machine, line) = self.build(&kvm, &devices)?;
        let (output, mut input) = line.into_split();
        let name = self.name;
        let printer = task::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Some(line) = lines.next_line().await? {
                say(name, line)?;
            }
            io::Result::Ok(())
        });

        let events = machine.events().pollable()?;
        machine.start()?;
        let mut ended = pin!(ended(name, watched(events)?));
        tokio::select! {
            outcome = &mut ended => drop(outcome?),
            _ = time::sleep(self.limit) => say(name, "its time is up")?,
            // Asked to end, or nobody is left to ask.
            _ = end.changed() => {
                input.write_all(b"q").await?;
                // A guest that does not listen is stopped all the same.
                let _ = time::timeout(GRACE, &mut ended).await;
            }
        }
        let mut metrics = Vec::new();
        machine.metrics(&mut |scope, metric, value| {
            if value > 0 {
                metrics.push(format!("{scope}.{} = {value} ({:?})", metric.name, metric.kind));
            }
        });
        metrics.iter().try_for_each(|metric| say(name, metric))?;
        // Waits for threads: not for long, but tokio's own must not.
        let outcome = task::spawn_blocking(move || machine.stop()).await??;
        printer.await??;
        Ok(outcome)
    }
}

/// Prints a line about a guest. Standard output may be closed: that is an error, not a panic.
fn say(name: &str, text: impl Display) -> io::Result<()> {
    writeln!(io::stdout(), "{name}: {text}")
}

/// Has tokio watch a descriptor for as long as the result lives.
fn watched<T: AsRawFd>(file: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: event loops and followers of events own one descriptor each, open until they are dropped.
    Ok(unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) }?)
}

/// Follows a machine to its end, and tells what its devices report.
async fn ended(name: &str, mut events: AsyncFd<PollableEvents>) -> io::Result<Outcome> {
    let mut reporter = EventReporter::new(Severity::Warning);
    loop {
        let mut ready = events.readable_mut().await?;
        match ready.get_inner_mut().try_next() {
            Some(MachineEvent::Ended(outcome)) => return Ok(outcome),
            Some(event) => reporter.report(&event, |line| drop(say(name, line))),
            None => ready.clear_ready(),
        }
    }
}

/// Gives the devices of all machines their turns.
async fn turns(devices: EventLoop) -> io::Result<()> {
    let devices = watched(devices)?;
    loop {
        let mut ready = devices.readable().await?;
        if !devices.get_ref().pass()? {
            ready.clear_ready();
        }
        // Others have turns, too.
        task::yield_now().await;
    }
}

async fn serve() -> Result<()> {
    let (kvm, devices) = (Kvm::open()?, EventLoop::new()?);
    let (tell, end) = watch::channel(false);
    let turns = task::spawn(turns(devices.clone()));
    let jobs = [
        Job::new("short", &[code::POWER_OFF], Duration::from_secs(60)),
        Job::new("stuck", &[code::HANG], Duration::from_millis(500)),
        Job::new("server", &[code::AWAIT_KEY, code::POWER_OFF], Duration::from_secs(3600)),
    ];
    let mut running = task::JoinSet::new();
    for job in jobs {
        let (name, job) = (job.name, job.run(kvm.clone(), devices.clone(), end.clone()));
        running.spawn(async move { (name, job.await) });
    }
    let mut interrupt = pin!(signal::ctrl_c());
    let mut asked = false;
    loop {
        tokio::select! {
            interrupted = &mut interrupt, if !asked => {
                interrupted?;
                asked = true;
                tell.send_replace(true);
            }
            job = running.join_next() => match job {
                Some(job) => {
                    let (name, outcome) = job?;
                    say(name, outcome?)?;
                }
                None => break,
            },
        }
    }
    turns.abort();
    Ok(())
}

fn main() -> std::result::Result<(), Failure> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve()).map_err(|error| Failure::from(error as Box<dyn Error>))
}
