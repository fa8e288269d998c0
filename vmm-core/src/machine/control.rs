//! Control of a machine: one operation at a time, on the thread that asks for it. Control waits for vCPUs, vCPUs and
//! control wait for devices' workers, workers for the host's kernel; nothing waits the other way round.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;

use ossature_bus::{Device, DeviceEvent};

use super::LifecycleState;
use super::board::Board;
use super::clock::GuestClock;
use super::error::LifecycleError;
use super::events::MachineEvent;
use super::fork::Lineage;
use super::mailbox::{Mailbox, Order};
use super::outcome::Outcome;
use super::payload::Payload;
use super::snapshot::{Pager, SnapshotKey};
use super::state::MachineState;
use super::status::{Peer, Requests, Status};
use super::timeline::{BuildPhase, Stopwatch};
use super::vcpu_thread::{OnThreadStart, VcpuThread};
use crate::{Vcpu, VmError, error_chain};

/// What the machine, its handles and its guards share.
pub(super) struct Shared {
    pub(super) status: Arc<Status>,
    /// Taken for each operation; never by a vCPU, a device or a worker.
    control: Mutex<Option<Control>>,
    /// The same board as the control's, for those who only look.
    board: Mutex<Option<Arc<Board>>>,
    /// What it came of by forks, and what comes of it.
    pub(super) lineage: OnceLock<Arc<Lineage>>,
}

/// A built machine as its control sees it.
pub(super) struct Control {
    pub(super) name: String,
    /// vCPUs without a thread: all of them, before the start and after the end.
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) threads: Vec<JoinHandle<Vcpu>>,
    pub(super) cpus: u32,
    pub(super) payload: Option<Box<dyn Payload>>,
    pub(super) on_thread_start: Option<OnThreadStart>,
    pub(super) phases: Vec<BuildPhase>,
    /// How often the machine was paused: which pause a guard belongs to.
    pub(super) pauses: u64,
    pub(super) status: Arc<Status>,
    /// What its snapshots are saved with.
    pub(super) key: Option<SnapshotKey>,
    /// Fills memory that comes on demand.
    pub(super) pager: Option<Pager>,
    // The last to go: vCPUs run in what it holds.
    pub(super) board: Arc<Board>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            status: Arc::default(),
            control: Mutex::new(None),
            board: Mutex::new(None),
            lineage: OnceLock::new(),
        }
    }

    /// The machine has been built.
    pub(super) fn built(&self, control: Control) {
        *self.board.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&control.board));
        *self.lock() = Some(control);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Control>> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One operation. What was asked of the control before is carried out first.
    pub(super) fn control<R>(
        &self,
        call: &'static str,
        f: impl FnOnce(&mut Control) -> Result<R, LifecycleError>,
    ) -> Result<R, LifecycleError> {
        let mut control = self.lock();
        let control = control.as_mut().ok_or(LifecycleError::Gone { call })?;
        control.serve_requests()?;
        f(control)
    }

    /// Returns true if the machine has been given back.
    pub(super) fn is_released(&self) -> bool {
        self.status.outcome().is_some() && self.board().is_none()
    }

    pub(super) fn board(&self) -> Option<Arc<Board>> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the machine and gives everything back: threads, descriptors, memory. Handles stay, of a machine that is gone.
    pub(super) fn release(&self) {
        self.status.end(Outcome::Stopped);
        let control = self.lock().take();
        *self.board.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(mut control) = control {
            control.join();
            // Nobody is left to tell.
            let _ = control.board.quiesce();
        }
    }
}

impl Control {
    pub(super) fn enter(&self, state: LifecycleState) {
        self.status.enter(state);
    }

    /// Where control has taken the machine, which may have ended by itself since then.
    pub(super) fn entered(&self) -> LifecycleState {
        self.status.entered()
    }

    /// The state in which the machine is, which may have ended by itself.
    pub(super) fn state(&self) -> LifecycleState {
        self.status.lifecycle()
    }

    pub(super) fn expect(&self, states: &[LifecycleState], call: &'static str) -> Result<(), LifecycleError> {
        let state = self.state();
        if states.contains(&state) { Ok(()) } else { Err(LifecycleError::Illegal { call, state }) }
    }

    /// Carries out what vCPUs, devices and handles have asked for.
    pub(super) fn serve_requests(&mut self) -> Result<(), LifecycleError> {
        let Requests { pause, reset, removals } = self.status.take_requests();
        if self.state() == LifecycleState::Stopped {
            return Ok(());
        }
        // A device may have gone since.
        let removed: Vec<_> = removals.into_iter().filter_map(|range| self.board.owner_of(range)).collect();
        for id in removed {
            // Whoever is told that it is gone finds what it had on the host free.
            let removed = self.remove(&id, true).map(drop);
            self.status.events.push(MachineEvent::DeviceRemoved { id: id.clone() });
            if let Err(error) = removed {
                // The guest asked for it: nobody waits for the answer, and what else was asked for is done all the same.
                let event = DeviceEvent::HostError { reason: error_chain(&error) };
                self.status.events.push(MachineEvent::Device { id, event });
            }
        }
        match self.serve(pause, reset) {
            // What was asked of it does not matter any more.
            Err(_) if self.state() == LifecycleState::Stopped => Ok(()),
            served => served,
        }
    }

    fn serve(&mut self, pause: bool, reset: bool) -> Result<(), LifecycleError> {
        // Whoever asked has paused the vCPUs already; before the start there were none.
        if reset && self.entered() != LifecycleState::Created {
            let paused = self.entered() == LifecycleState::Paused;
            self.reset()?;
            if !(paused || pause) {
                return self.go_on();
            }
            if !paused {
                self.status.events.push(MachineEvent::Paused);
            }
            return Ok(());
        }
        if pause && self.entered() == LifecycleState::Running {
            self.pause()?;
        }
        Ok(())
    }

    pub(super) fn start(&mut self) -> Result<(), LifecycleError> {
        self.expect(&[LifecycleState::Created], "start")?;
        let mut watch = Stopwatch::start();
        // Devices first: a vCPU must find them working.
        self.board.resume().inspect_err(|_| {
            // The first error is the one to tell.
            let _ = self.board.quiesce();
        })?;
        let vcpus = std::mem::take(&mut self.vcpus);
        let peer = |vcpu: &Vcpu| Peer { mailbox: Arc::new(Mailbox::new()), kicker: vcpu.kicker() };
        self.status.set_peers(vcpus.iter().map(peer).collect());
        self.status.events.push(MachineEvent::Started);
        self.enter(LifecycleState::Running);
        let status = Arc::clone(&self.status);
        for (index, (vcpu, peer)) in (0..).zip(vcpus.into_iter().zip(status.peers())) {
            let thread = VcpuThread {
                index,
                mailbox: Arc::clone(&peer.mailbox),
                status: Arc::clone(&self.status),
                board: Arc::clone(&self.board),
                on_start: self.on_thread_start.clone(),
            };
            match thread.spawn(&self.name, vcpu) {
                Ok(thread) => self.threads.push(thread),
                Err(source) => {
                    self.status.end(Outcome::Stopped);
                    status.peers().iter().skip(index as usize).for_each(|peer| peer.mailbox.exited());
                    self.finish()?;
                    return Err(LifecycleError::Thread { index, source });
                }
            }
        }
        watch.lap("start");
        self.phases.extend(watch.phases());
        Ok(())
    }

    /// Pauses all vCPUs between two instructions, then all devices.
    pub(super) fn pause(&mut self) -> Result<(), LifecycleError> {
        self.expect(&[LifecycleState::Running], "pause")?;
        self.pause_vcpus("pause")?;
        self.enter(LifecycleState::Paused);
        if let Err(error) = self.board.quiesce() {
            // What is paused already goes on; the first error is the one to tell.
            let _ = self.go_on();
            return Err(error);
        }
        self.pauses += 1;
        self.status.events.push(MachineEvent::Paused);
        Ok(())
    }

    pub(super) fn pause_vcpus(&mut self, call: &'static str) -> Result<(), LifecycleError> {
        self.status.order(Order::Pause);
        for peer in self.status.peers() {
            peer.mailbox.wait_paused();
        }
        if self.state() == LifecycleState::Stopped {
            return Err(LifecycleError::Illegal { call, state: LifecycleState::Stopped });
        }
        Ok(())
    }

    pub(super) fn resume(&mut self) -> Result<(), LifecycleError> {
        self.expect(&[LifecycleState::Paused], "resume")?;
        self.go_on()?;
        self.status.events.push(MachineEvent::Resumed);
        Ok(())
    }

    /// Devices first: a vCPU must find them working. If one cannot go on, the machine stays paused, and an event says
    /// why.
    pub(super) fn go_on(&mut self) -> Result<(), LifecycleError> {
        if let Err(error) = self.board.resume() {
            // The first error is the one to tell.
            let _ = self.board.quiesce();
            if let LifecycleError::Device { id, source } = &error {
                let event = DeviceEvent::HostError { reason: error_chain(source) };
                self.status.events.push(MachineEvent::Device { id: id.clone(), event });
            }
            return Err(error);
        }
        self.enter(LifecycleState::Running);
        self.status.go_on();
        Ok(())
    }

    /// Takes the machine back to where it was before its start, with the same virtual machine, and leaves it paused.
    fn reset(&mut self) -> Result<(), LifecycleError> {
        if self.entered() == LifecycleState::Running {
            self.pause_vcpus("reset")?;
            self.enter(LifecycleState::Paused);
        }
        self.board.quiesce()?;
        self.board.reset()?;
        self.on_each_vcpu(Vcpu::reset)?;
        self.board.vm().reset().map_err(LifecycleError::Vm)?;
        self.board.ram().clear().map_err(LifecycleError::Memory)?;
        // Nothing is to come any more.
        self.pager = None;
        let platform = self.board.platform(self.cpus);
        if let Some(payload) = &mut self.payload {
            let registers = payload
                .load(&self.board.ram().map(), &platform)
                .map_err(|source| LifecycleError::Payload { source })?;
            self.with_vcpu(0, move |vcpu| vcpu.set_registers(&registers))??;
        }
        self.status.guest_restarts();
        self.status.events.push(MachineEvent::Reset);
        Ok(())
    }

    /// As [`reset`](Self::reset); the machine runs again if it ran.
    pub(super) fn reset_and_go_on(&mut self) -> Result<(), LifecycleError> {
        self.expect(&[LifecycleState::Running, LifecycleState::Paused], "reset")?;
        let ran = self.entered() == LifecycleState::Running;
        self.reset()?;
        if ran { self.go_on() } else { Ok(()) }
    }

    /// Waits for all threads, and for what devices have begun. The machine has ended.
    pub(super) fn finish(&mut self) -> Result<(), LifecycleError> {
        if self.entered() == LifecycleState::Stopped {
            return Ok(());
        }
        self.join();
        self.board.quiesce()
    }

    fn join(&mut self) {
        self.enter(LifecycleState::Stopped);
        self.collect_vcpus();
    }

    /// Waits for all threads, which end, and takes their vCPUs back.
    fn collect_vcpus(&mut self) {
        // A thread does not panic: what its vCPU runs is caught.
        self.vcpus.extend(self.threads.drain(..).filter_map(|thread| thread.join().ok()));
    }

    /// Does something with a vCPU that is not running, on its thread if it has one, and returns what came of it.
    pub(super) fn with_vcpu<R: Send + 'static>(
        &mut self,
        index: u32,
        f: impl FnOnce(&mut Vcpu) -> R + Send + 'static,
    ) -> Result<R, LifecycleError> {
        let gone = LifecycleError::NoSuchVcpu { index };
        let peers = self.status.peers();
        if self.threads.is_empty() {
            return self.vcpus.get_mut(index as usize).map(f).ok_or(gone);
        }
        let Some(peer) = peers.get(index as usize) else { return Err(gone) };
        let (answer, result) = mpsc::sync_channel(1);
        let work = Box::new(move |vcpu: &mut Vcpu| {
            // Whoever asked waits for the answer.
            let _ = answer.send(f(vcpu));
        });
        peer.mailbox.work(work).map_err(|_| LifecycleError::NoSuchVcpu { index })?;
        peer.kicker.kick();
        result.recv().map_err(|_| gone)
    }

    /// Does the same with each vCPU, one after the other.
    pub(super) fn on_each_vcpu(
        &mut self,
        f: impl Fn(&mut Vcpu) -> Result<(), VmError> + Clone + Send + 'static,
    ) -> Result<(), LifecycleError> {
        for index in 0..self.cpus {
            self.with_vcpu(index, f.clone())??;
        }
        Ok(())
    }

    /// Makes every vCPU take notice of the buses: what was removed is not reached any more.
    fn sync_vcpus(&mut self) -> Result<(), LifecycleError> {
        for index in 0..self.cpus {
            match self.with_vcpu(index, |vcpu| vcpu.sync_buses()) {
                Ok(()) => {}
                Err(LifecycleError::NoSuchVcpu { .. }) => {
                    // Its thread has ended, and so will all others: their vCPUs still have their views of the buses.
                    self.collect_vcpus();
                    self.vcpus.iter_mut().for_each(Vcpu::sync_buses);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn add_device(&mut self, device: Box<dyn Device>) -> Result<(), LifecycleError> {
        const LIVE: [LifecycleState; 3] =
            [LifecycleState::Created, LifecycleState::Running, LifecycleState::Paused];
        self.expect(&LIVE, "add a device to")?;
        let id = device.id().to_owned();
        self.board.add(device).map_err(|errors| LifecycleError::Build { errors })?;
        if self.entered() == LifecycleState::Running {
            if let Err(error) = self.board.resume_one(&id) {
                // A device that cannot run is not added; the first error is the one to tell.
                let board = Arc::clone(&self.board);
                let _ = board.remove(&id, true, || self.sync_vcpus());
                return Err(error);
            }
        }
        self.status.events.push(MachineEvent::DeviceAdded { id });
        Ok(())
    }

    pub(super) fn remove_device(&mut self, id: &str) -> Result<Box<dyn Device>, LifecycleError> {
        let was_there = self.board.has(id);
        let removed = self.remove(id, false);
        if was_there && !self.board.has(id) {
            self.status.events.push(MachineEvent::DeviceRemoved { id: id.to_owned() });
        }
        removed
    }

    /// Removes a device. One that cannot be quiesced stays, unless it `must_go`; one that cannot be detached is gone all the
    /// same.
    fn remove(&mut self, id: &str, must_go: bool) -> Result<Box<dyn Device>, LifecycleError> {
        let board = Arc::clone(&self.board);
        board.remove(id, must_go, || self.sync_vcpus()).inspect_err(|_| {
            // A device that stays goes on; the first error is the one to tell.
            if self.state() == LifecycleState::Running {
                let _ = board.resume_one(id);
            }
        })
    }

    pub(super) fn replace_device(&mut self, new: Box<dyn Device>) -> Result<Box<dyn Device>, LifecycleError> {
        let id = new.id().to_owned();
        let runs = self.state() == LifecycleState::Running;
        if runs {
            // No access may fall between the two.
            self.pause_vcpus("replace a device of")?;
        }
        let board = Arc::clone(&self.board);
        let old = board.replace(new, runs, || self.sync_vcpus());
        if runs {
            self.status.go_on();
        }
        let old = old?;
        self.status.events.push(MachineEvent::DeviceReplaced { id });
        Ok(old)
    }

    /// Everything about the machine but its memory. It is paused.
    pub(super) fn save(&mut self) -> Result<MachineState, LifecycleError> {
        let mut vcpus = Vec::new();
        for index in 0..self.cpus {
            vcpus.push(self.with_vcpu(index, |vcpu| vcpu.state())??);
        }
        let vm = self.board.vm().state().map_err(LifecycleError::Vm)?;
        Ok(MachineState { vcpus, vm, devices: self.board.save()? })
    }

    /// Becomes what another machine was, or a clone of it. This one is new: after an error it can only be dropped.
    pub(super) fn go_on_from(
        &mut self,
        state: &MachineState,
        to_clone: bool,
        clock: GuestClock,
    ) -> Result<(), LifecycleError> {
        self.board.take_over(&state.devices, to_clone)?;
        let now = clock.now(state)?;
        let (vm, vcpus) = now.as_ref().map_or((&state.vm, &state.vcpus), |(vm, vcpus)| (vm, vcpus));
        self.board.vm().set_state(vm)?;
        for (vcpu, state) in self.vcpus.iter_mut().zip(vcpus) {
            vcpu.set_state(state)?;
        }
        Ok(())
    }

    /// Takes over what [`save`](Self::save) gave. The machine is paused.
    pub(super) fn restore(&mut self, state: MachineState) -> Result<(), LifecycleError> {
        let MachineState { vcpus, vm, devices } = state;
        if vcpus.len() != self.cpus as usize {
            return Err(LifecycleError::OtherVcpus { found: vcpus.len() as u32, expected: self.cpus });
        }
        self.board.restore(devices)?;
        self.board.vm().set_state(&vm).map_err(LifecycleError::Vm)?;
        for (index, state) in (0..).zip(vcpus) {
            self.with_vcpu(index, move |vcpu| vcpu.set_state(&state))??;
        }
        Ok(())
    }
}
