//! A vCPU on its own thread: runs until told otherwise, and is told only between two exits.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use ossature_bus::{Effect, Panic};

use super::board::Board;
use super::mailbox::Mailbox;
use super::outcome::Outcome;
use super::status::Status;
use crate::{Step, Vcpu};

/// Called on each vCPU's thread before it runs, with the vCPU's index: to pin the thread, to install a filter. An error
/// ends the machine.
pub(super) type OnThreadStart = Arc<dyn Fn(u32) -> io::Result<()> + Send + Sync>;

/// What a vCPU's thread reaches.
pub(super) struct VcpuThread {
    pub(super) index: u32,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) status: Arc<Status>,
    pub(super) board: Arc<Board>,
    pub(super) on_start: Option<OnThreadStart>,
}

impl VcpuThread {
    /// Starts the thread. It gives the vCPU back when it ends.
    pub(super) fn spawn(self, machine: &str, vcpu: Vcpu) -> io::Result<JoinHandle<Vcpu>> {
        // The kernel keeps 15 bytes of a thread's name: the vCPU comes first, it tells the threads apart.
        let name = format!("vcpu{}:{machine}", self.index);
        std::thread::Builder::new().name(name).spawn(move || self.run(vcpu))
    }

    fn run(self, mut vcpu: Vcpu) -> Vcpu {
        let part = format!("vcpu{}", self.index);
        let started = self.on_start.as_ref().map_or(Ok(()), |on_start| {
            Panic::catch(|| on_start(self.index)).unwrap_or_else(|panic| Err(io::Error::other(panic.message)))
        });
        match started {
            Err(error) => {
                let reason = format!("the hook for its thread: {error}");
                self.status.end(Outcome::Failed { part, reason });
            }
            // Nothing of the vCPU is left half done by a panic: its exits are complete before a device is called.
            Ok(()) => {
                while let Err(panic) = Panic::catch(|| self.run_guest(&mut vcpu)) {
                    let device =
                        vcpu.last_access().and_then(|(space, address)| self.board.owner(space, address));
                    self.status.panicked(device.unwrap_or_else(|| part.clone()), panic.message);
                }
            }
        }
        self.mailbox.exited();
        vcpu
    }

    /// Runs until it is time to stop.
    fn run_guest(&self, vcpu: &mut Vcpu) {
        // A vCPU that cannot tell its guest of a pause runs all the same.
        while self.mailbox.wait_while_paused(vcpu, |vcpu| _ = vcpu.notify_paused()) {
            self.mailbox.enters();
            loop {
                match vcpu.run_once() {
                    Ok(Step::Handled) => {}
                    Ok(Step::Interrupted) => break,
                    Ok(Step::Effect(effect)) => {
                        if self.carry_out(effect) {
                            break;
                        }
                    }
                    Ok(Step::Halted) => {
                        self.status.end(Outcome::Halted);
                        break;
                    }
                    Err(error) => {
                        self.status.crashed(error);
                        break;
                    }
                }
            }
        }
    }

    /// Carries out what a device asks for. Returns true if the vCPU is to look at its mailbox.
    fn carry_out(&self, effect: Effect) -> bool {
        match effect {
            Effect::Vm(request) => self.status.carry_out(request),
            Effect::Remap(id) => {
                self.board.remap(id);
                false
            }
            Effect::Remove(id) => {
                self.status.request_removal(id);
                false
            }
            _ => false,
        }
    }
}
