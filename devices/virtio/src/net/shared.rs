//! What the parts of a card have in common: its workers, the control plane, and the VMM's handles.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ossature_bus::{Event, EventSink, RateLimiter, RateLimits};

use super::capture::Capture;
use super::counters::{ControlCounters, Counters};
use super::io::NetIo;
use super::settings::Settings;
use crate::{Activation, ConfigInterrupt};

/// What does not depend on the network. Workers look at the generation once a turn, and take the lock only where it has
/// moved.
#[derive(Debug)]
pub(super) struct Card {
    settings: Mutex<Settings>,
    generation: AtomicU32,
    /// Tells a driver that runs.
    config: Mutex<Option<ConfigInterrupt>>,
    /// Where no worker of ours looks at the link.
    #[cfg(feature = "vhost")]
    on_link: std::sync::OnceLock<OnLink>,
    pub(super) counters: ControlCounters,
    pub(super) capture: Capture,
    /// Of packets to the guest.
    pub(super) rx_limiter: RateLimiter,
    /// Of packets from the guest.
    pub(super) tx_limiter: RateLimiter,
}

/// Called when the link has gone up or down.
#[cfg(feature = "vhost")]
struct OnLink(Box<dyn Fn() + Send + Sync>);

#[cfg(feature = "vhost")]
impl std::fmt::Debug for OnLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnLink")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Card {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings: Mutex::new(settings),
            generation: AtomicU32::new(1),
            config: Mutex::default(),
            #[cfg(feature = "vhost")]
            on_link: std::sync::OnceLock::new(),
            counters: ControlCounters::default(),
            capture: Capture::default(),
            rx_limiter: RateLimiter::new(RateLimits::default()),
            tx_limiter: RateLimiter::new(RateLimits::default()),
        }
    }

    pub(super) fn settings(&self) -> MutexGuard<'_, Settings> {
        lock(&self.settings)
    }

    /// Changes the settings; workers see that.
    pub(super) fn change<R>(&self, f: impl FnOnce(&mut Settings) -> R) -> R {
        let mut settings = self.settings();
        let result = f(&mut settings);
        self.generation.fetch_add(1, Ordering::Release);
        result
    }

    /// The settings, if they have changed since `seen`, which becomes the generation that they have.
    #[inline]
    pub(super) fn news(&self, seen: &mut u32) -> Option<MutexGuard<'_, Settings>> {
        let now = self.generation.load(Ordering::Acquire);
        if now == *seen {
            return None;
        }
        *seen = now;
        Some(self.settings())
    }

    /// Tells a driver of changes from now on, or none.
    pub(super) fn connect(&self, config: Option<ConfigInterrupt>) {
        *lock(&self.config) = config;
    }

    /// Has `f` called when the link has gone up or down. Once for a card.
    #[cfg(feature = "vhost")]
    pub(super) fn on_link(&self, f: impl Fn() + Send + Sync + 'static) {
        // There is no second time.
        let _ = self.on_link.set(OnLink(Box::new(f)));
    }

    /// The link has gone up or down.
    pub(super) fn link_changed(&self) {
        #[cfg(feature = "vhost")]
        if let Some(OnLink(f)) = self.on_link.get() {
            f();
        }
    }

    /// Tells the driver that configuration space reads otherwise.
    pub(super) fn raise(&self) {
        // Not raised under our lock: it may take the transport's, under which the device is started.
        let config = lock(&self.config).clone();
        if let Some(config) = config {
            config.raise();
        }
    }
}

/// One pair of queues as all threads see it.
#[derive(Debug)]
pub(super) struct Pair<I> {
    pub(super) io: I,
    pub(super) counters: Counters,
    /// Configuration space has last said that somebody is at the other end.
    told_connected: AtomicBool,
    /// Wakes its worker, if there is one.
    wake: Mutex<Weak<Event>>,
}

impl<I: NetIo> Pair<I> {
    pub(super) fn new(io: I) -> Self {
        Self {
            io,
            counters: Counters::default(),
            told_connected: AtomicBool::new(true),
            wake: Mutex::default(),
        }
    }

    /// Returns true if somebody is at the other end, for configuration space.
    pub(super) fn tell_connected(&self) -> bool {
        let connected = self.io.is_connected();
        self.told_connected.store(connected, Ordering::Relaxed);
        connected
    }

    /// Returns true if configuration space would say otherwise now.
    pub(super) fn has_news(&self) -> bool {
        self.io.is_connected() != self.told_connected.load(Ordering::Relaxed)
    }

    /// Takes a worker's event, for as long as that lives.
    pub(super) fn wake_by(&self, event: &Arc<Event>) {
        *lock(&self.wake) = Arc::downgrade(event);
    }

    /// Has the worker look at its settings.
    pub(super) fn wake(&self) {
        if let Some(wake) = lock(&self.wake).upgrade() {
            // An event whose count is full wakes as well.
            let _ = wake.signal();
        }
    }
}

/// A worker's way to all that.
pub(super) struct Shared<I> {
    pub(super) card: Arc<Card>,
    pub(super) pairs: Arc<[Pair<I>]>,
    pub(super) features: u128,
    pub(super) events: EventSink,
}

impl<I> Shared<I> {
    pub(super) fn new(card: &Arc<Card>, pairs: &Arc<[Pair<I>]>, activation: &Activation) -> Self {
        let Activation { features, events, .. } = activation.clone();
        Self { card: card.clone(), pairs: pairs.clone(), features, events }
    }
}
