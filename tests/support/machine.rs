//! A machine that a test builds from the library, in its own process, with the guest's console on a socket.

use std::io::Write;
use std::os::unix::net::UnixStream;

use ossature::bus::Device;
use ossature::legacy::backend;
use ossature::memory::RamConfig;
use ossature::vmm::machine::{Linux, Machine, MachineBuilder};

use super::{Answers, Guest, LIMIT, Log, arch};

/// The other side of a guest's serial port.
pub struct Terminal {
    socket: UnixStream,
    pub log: Log,
}

impl Terminal {
    /// A terminal, and the serial port whose other side it is.
    pub fn new() -> (Self, arch::Console) {
        let (socket, ours) = UnixStream::pair().unwrap();
        let line = backend::fds(Some(ours.try_clone().unwrap().into()), Some(ours.into())).unwrap();
        let log = Log::follow(socket.try_clone().unwrap());
        (Self { socket, log }, arch::serial(line))
    }

    /// Waits until the guest has printed this.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        assert!(self.log.wait_for(text, LIMIT), "no {text:?}: {}", self.log.text());
    }

    /// Types on the guest's console.
    pub fn type_in(&mut self, text: &str) {
        self.socket.write_all(text.as_bytes()).unwrap();
    }

    /// What the guest's commands printed; all of them have run and succeeded. The machine has to be gone.
    pub fn answers(&self, guest: &Guest) -> Answers {
        assert!(self.log.wait_for_end(LIMIT), "the console outlives the machine: {}", self.log.text());
        let text = self.log.text();
        Answers::parse(&text, &guest.names).unwrap_or_else(|what| panic!("{what}: {text}"))
    }
}

impl Guest {
    /// The guest as what a machine runs.
    pub fn payload(&self) -> Linux {
        Linux::new(&self.kernel).initrd(self.initrd()).cmdline(&self.cmdline)
    }

    /// A machine of the library that runs this guest: one processor, 256 MiB, what the platform has, a console,
    /// and `devices`. The guest has to outlive it.
    pub fn machine(
        &self,
        name: &str,
        devices: impl IntoIterator<Item = Box<dyn Device>>,
    ) -> (MachineBuilder, Terminal) {
        let (terminal, serial) = Terminal::new();
        let linux = self.payload();
        let builder = Machine::builder(name)
            .memory(RamConfig::new(256 << 20))
            .payload(linux)
            .devices(arch::board())
            .device(serial)
            .devices(devices);
        (builder, terminal)
    }
}
