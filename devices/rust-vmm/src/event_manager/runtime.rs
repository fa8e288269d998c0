//! Virtio workers on the thread of an event manager.

use std::fmt;
use std::sync::{Arc, OnceLock};

use ossature_bus::{DeviceError, EventLoop};
use ossature_virtio::{Failure, Runtime, Worker, WorkerHandle};

use super::{Error, LoopSubscriber, MutEventSubscriber, RemoteEndpoint};

/// A [`Runtime`] whose workers have their turns on the thread of somebody's [`EventManager`](super::EventManager), which
/// is reached by its endpoint. Other devices take its [`event_loop`](Self::event_loop).
///
/// The manager runs while workers start, work and stop. Stopping a queue of which something is in flight waits for
/// turns on the manager's thread, unless it is that thread which stops it; so that thread must not wait for the machine
/// meanwhile.
///
/// Clones are the same runtime. When the last one is dropped, the loop leaves the manager, and workers that are left
/// have no more turns.
///
/// ```
/// use std::sync::atomic::{AtomicBool, Ordering};
/// use std::sync::{Arc, Mutex};
/// use ossature_rust_vmm::event_manager::{EndpointRuntime, EventManager, MutEventSubscriber};
/// use ossature_virtio::{Rng, VirtioMmio};
///
/// // The VMM's own thread for events.
/// let mut manager = EventManager::<Arc<Mutex<dyn MutEventSubscriber + Send>>>::new()?;
/// let endpoint = manager.remote_endpoint();
/// let end = Arc::new(AtomicBool::new(false));
/// let ended = end.clone();
/// let thread = std::thread::spawn(move || {
///     while !ended.load(Ordering::Relaxed) {
///         manager.run().unwrap();
///     }
/// });
///
/// let runtime = EndpointRuntime::new(
///     &endpoint,
///     |subscriber| Arc::new(Mutex::new(subscriber)),
///     |error| eprintln!("no turns for virtio devices: {error}"),
/// )?;
/// let rng = VirtioMmio::new("rng", Box::new(Rng::new()), Arc::new(runtime.clone()));
/// # drop((rng, runtime));
/// # end.store(true, Ordering::Relaxed);
/// # endpoint.kick()?;
/// # thread.join().unwrap();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct EndpointRuntime {
    event_loop: EventLoop,
    _subscribed: Arc<Subscribed>,
}

impl EndpointRuntime {
    /// Adds a loop to the manager at the other end of `endpoint`, as what `wrap` makes of it. That happens when the
    /// manager runs next, and does not wait for it. `on_error` is as for [`LoopSubscriber::new`].
    pub fn new<S: MutEventSubscriber + 'static>(
        endpoint: &RemoteEndpoint<S>,
        wrap: impl FnOnce(LoopSubscriber) -> S + Send + 'static,
        on_error: impl FnMut(Error) + Send + 'static,
    ) -> Result<Self, DeviceError> {
        let failed = |error: Error| {
            DeviceError::new("the event manager is not reached by its endpoint").with_source(error)
        };
        let event_loop = EventLoop::new()
            .map_err(|error| DeviceError::new("cannot make an event loop").with_source(error))?;
        let subscriber = LoopSubscriber::new(&event_loop, on_error);
        let id = Arc::new(OnceLock::new());
        let added = id.clone();
        endpoint
            .fire(move |ops| {
                let _ = added.set(ops.add_subscriber(wrap(subscriber)));
            })
            .map_err(failed)?;
        let endpoint = endpoint.clone();
        // The manager takes its calls in order.
        let leave = move || {
            let id = id.clone();
            // A manager that is gone has dropped the subscriber.
            let _ = endpoint.fire(move |ops| {
                if let Some(id) = id.get() {
                    drop(ops.remove_subscriber(*id));
                }
            });
        };
        Ok(Self { event_loop, _subscribed: Arc::new(Subscribed(Box::new(leave))) })
    }

    /// The loop that has its turns on the manager's thread, for devices and handlers of any kind.
    pub fn event_loop(&self) -> &EventLoop {
        &self.event_loop
    }
}

impl Runtime for EndpointRuntime {
    fn spawn(
        &self,
        name: &str,
        worker: Box<dyn Worker>,
        failed: Box<dyn FnOnce(Failure) + Send>,
    ) -> Result<Box<dyn WorkerHandle>, DeviceError> {
        self.event_loop.spawn(name, worker, failed)
    }
}

impl fmt::Debug for EndpointRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointRuntime").field("event_loop", &self.event_loop).finish_non_exhaustive()
    }
}

/// Takes the loop off the manager.
struct Subscribed(Box<dyn Fn() + Send + Sync>);

impl Drop for Subscribed {
    fn drop(&mut self) {
        (self.0)();
    }
}
