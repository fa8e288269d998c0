//! A vhost device without a kernel: notes what it is told, and serves its rings when a test says so.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use ossature_bus::{Event, Interrupt};
use ossature_memory::Dma;

use super::kernel::{Backend, Refused, RingEvent};
use crate::{QueueSetup, QueueState, features};

/// All that it was told.
#[derive(Default)]
pub(crate) struct Told {
    /// Each call, in a few words.
    pub(crate) calls: Vec<String>,
    pub(crate) features: u64,
    pub(crate) owned: bool,
    pub(crate) rings: BTreeMap<u32, Ring>,
    /// Calls that begin so are refused with this error.
    pub(crate) refuse: Option<(&'static str, i32)>,
    running: bool,
}

#[derive(Default)]
pub(crate) struct Ring {
    setup: Option<(QueueState, Dma)>,
    events: BTreeMap<&'static str, Event>,
    tap: bool,
}

#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<Told>>);

/// What Linux has offered for long.
pub(crate) const OFFERED: u64 = 1 << 15 | 1 << 24 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 32 | 1 << 33;

impl Fake {
    pub(crate) fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap()
    }

    /// The calls since this was last asked.
    pub(crate) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.told().calls)
    }

    fn call(&self, request: &'static str, arguments: String) -> Result<MutexGuard<'_, Told>, Refused> {
        let mut told = self.told();
        let call = format!("{request} {arguments}").trim().to_owned();
        let refused = told.refuse.filter(|(prefix, _)| call.starts_with(prefix));
        told.calls.push(call);
        match refused {
            Some((_, error)) => Err(Refused { request, source: io::Error::from_raw_os_error(error) }),
            None => Ok(told),
        }
    }

    /// Returns true if the kernel would serve this ring.
    pub(crate) fn runs(&self, ring: u32) -> bool {
        let told = self.told();
        told.rings.get(&ring).is_some_and(|ring| ring.setup.is_some() && (ring.tap || told.running))
    }

    /// Serves what is offered on a ring that runs, if its doorbell has been rung: writes `bytes` to each buffer. Returns
    /// how many there were.
    pub(crate) fn serve(&self, ring: u32, bytes: &[u8]) -> usize {
        assert!(self.runs(ring), "ring {ring} does not run");
        let mut told = self.told();
        let features = u128::from(told.features);
        let ring = told.rings.get_mut(&ring).unwrap();
        if ring.events["kick"].take().unwrap() == 0 {
            return 0;
        }
        let (state, dma) = ring.setup.take().unwrap();
        let copy = |event: &Event| {
            use std::os::fd::AsFd;
            Arc::new(Event::from_fd(event.as_fd().try_clone_to_owned().unwrap()).unwrap())
        };
        let (kick, call) = (copy(&ring.events["kick"]), copy(&ring.events["call"]));
        let setup = QueueSetup::new(0, state, dma.clone(), kick, Interrupt::from(call));
        let mut queue = setup.with_features(features | features::INDIRECT_DESC).build().unwrap();
        let mut served = 0;
        while let Some(chain) = queue.pop().unwrap() {
            let written = queue.dma().scatter(chain.writable(), bytes).unwrap();
            queue.complete(chain, written as u32).unwrap();
            served += 1;
        }
        queue.flush().unwrap();
        assert!(!queue.enable_kicks().unwrap());
        ring.setup = Some((queue.into_state(), dma));
        served
    }

    /// The kernel cannot make sense of a ring.
    pub(crate) fn fail(&self, ring: u32) {
        self.told().rings[&ring].events["error"].signal().unwrap();
    }
}

impl Backend for Fake {
    fn features(&self) -> Result<u64, Refused> {
        Ok(OFFERED | 2)
    }

    fn set_owner(&self) -> Result<(), Refused> {
        self.call("owner", String::new())?.owned = true;
        Ok(())
    }

    fn set_features(&self, features: u64) -> Result<(), Refused> {
        assert_eq!(features & !(OFFERED | 2), 0);
        self.call("features", format!("{features:#x}"))?.features = features;
        Ok(())
    }

    fn set_memory(&self, dma: &Dma) -> Result<(), Refused> {
        use ossature_memory::vm_memory::GuestMemoryBackend;
        self.call("memory", dma.memory().num_regions().to_string()).map(drop)
    }

    fn set_ring(&self, ring: u32, state: &QueueState, dma: &Dma) -> Result<(), Refused> {
        assert!(!self.runs(ring));
        let indices = format!("{ring}: {} {}", state.size, state.next_avail);
        let mut told = self.call("ring", indices)?;
        told.rings.entry(ring).or_default().setup = Some((*state, dma.clone()));
        Ok(())
    }

    fn stop_ring(&self, ring: u32) -> Result<u16, Refused> {
        assert!(!self.runs(ring), "ring {ring} runs");
        let mut told = self.call("stop", ring.to_string())?;
        Ok(told.rings.get_mut(&ring).unwrap().setup.take().unwrap().0.next_avail)
    }

    fn set_event(&self, ring: u32, event: RingEvent, fd: Option<BorrowedFd<'_>>) -> Result<(), Refused> {
        let name = match event {
            RingEvent::Kick => "kick",
            RingEvent::Call => "call",
            RingEvent::Error => "error",
        };
        let mut told = self.call(name, format!("{ring}: {}", fd.is_some()))?;
        let events = &mut told.rings.entry(ring).or_default().events;
        match fd {
            Some(fd) => _ = events.insert(name, Event::from_fd(fd.try_clone_to_owned().unwrap()).unwrap()),
            None => _ = events.remove(name),
        }
        Ok(())
    }

    fn set_tap(&self, ring: u32, tap: Option<BorrowedFd<'_>>) -> Result<(), Refused> {
        let mut told = self.call("tap", format!("{ring}: {}", tap.is_some()))?;
        told.rings.get_mut(&ring).unwrap().tap = tap.is_some();
        Ok(())
    }

    fn set_cid(&self, cid: u64) -> Result<(), Refused> {
        self.call("cid", cid.to_string()).map(drop)
    }

    fn set_running(&self, running: bool) -> Result<(), Refused> {
        self.call("running", running.to_string())?.running = running;
        Ok(())
    }
}
