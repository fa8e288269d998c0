//! Forks: one machine becomes many, each with memory, devices and an identity of its own.

mod claims;
mod error;
mod plan;

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_bus::Panic;
use ossature_memory::memory_file;
use rustix::fs::{SealFlags, fcntl_add_seals};

use super::Machine;
use super::builder::MachineBuilder;
use super::control::Control;
use super::handle::MachineHandle;
use super::snapshot::{LiveSnapshot, Saved, Snapshot, SnapshotError, SnapshotKey};
use crate::Hypervisor;
use claims::Claims;
pub use error::{ForkError, Holder};
pub use plan::ForkPlan;

/// A machine at one moment, from which any number of machines go on, now and later. They share its memory copy on write:
/// making one copies nothing.
///
/// A template is a snapshot, of a machine that [goes on](MachineHandle::template), in memory, or one [in a file](Self::new).
/// Another process that has its [descriptor](AsFd) opens it with [`Snapshot::from_file`] and forks it too.
///
/// Children save with the [key](super::MachineBuilder::snapshot_key) of their parent, if it has one. A template that was made
/// of a machine has no tree, and its key is with this process alone: where its descriptor is opened, children have none, and
/// save without, unless [`ForkPlan::with_machine`] gives them one.
///
/// ```no_run
/// use ossature_bus::Device;
/// use ossature_core::Kvm;
/// use ossature_core::machine::{ForkPlan, GuestClock, Machine};
/// use ossature_legacy::{FwCfg, GenerationId, VmGenId};
/// use ossature_memory::vm_memory::GuestAddress;
///
/// let devices = |name: String| -> Result<Vec<Box<dyn Device>>, Box<dyn std::error::Error + Send + Sync>> {
///     let generation = VmGenId::new("generation", GenerationId::random()?);
///     let files = FwCfg::new("fw-cfg").file("opt/org.example/hostname", name)?;
///     Ok(vec![Box::new(generation), Box::new(files)])
/// };
/// let kvm = Kvm::open()?;
/// let parent = Machine::builder("parent").devices(devices("parent".to_owned())?).build(&kvm)?;
/// parent.start()?;
/// parent.ram().dma().write(GuestAddress(0x1000), b"warm")?;
///
/// // Paused for as long as it takes to copy what memory it uses, once; then it goes on.
/// let template = parent.template()?;
///
/// let plan = ForkPlan::new(3, GuestClock::Continue, |child| devices(format!("clone-{child}")));
/// let children: Vec<Machine> = template.fork(&kvm, &plan)?; // all of them run
/// for child in &children {
///     assert_eq!(child.ram().dma().read_obj::<[u8; 4]>(GuestAddress(0x1000))?, *b"warm");
///     child.ram().dma().write(GuestAddress(0x1000), b"mine")?;
/// }
/// assert_eq!(parent.ram().dma().read_obj::<[u8; 4]>(GuestAddress(0x1000))?, *b"warm");
///
/// // Two guests of the same name are none.
/// let plan = ForkPlan::new(2, GuestClock::Continue, |_| devices("clone".to_owned()));
/// let error = template.fork(&kvm, &plan).unwrap_err();
/// assert_eq!(error.to_string(), r#"child 4: device "fw-cfg": its contents of all files is child 3's too"#);
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// ```
pub struct Template {
    name: String,
    saved: Arc<Saved>,
    file: Arc<File>,
    lineage: Arc<Lineage>,
}

/// A machine and all that come of it, by forks of forks too.
#[derive(Default)]
pub(super) struct Lineage {
    claims: Mutex<Claims>,
    /// The number of the next child.
    next: AtomicU64,
}

impl Lineage {
    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Template {
    /// A template that is stored. Its memory is not read before it is used; see [`Snapshot::verify_memory`]. Who the
    /// parent was is not in it, but for what the states of devices say: these refuse the parent's MAC and CID.
    pub fn new(snapshot: Snapshot) -> Result<Self, SnapshotError> {
        let key = snapshot.key().cloned();
        Self::of("clone", snapshot, Arc::default(), key)
    }

    fn of(
        name: &str,
        snapshot: Snapshot,
        lineage: Arc<Lineage>,
        key: Option<SnapshotKey>,
    ) -> Result<Self, SnapshotError> {
        let file = Arc::clone(snapshot.file()?);
        let (name, saved) = (name.to_owned(), Arc::new(Saved::new(snapshot)?.with_key(key)));
        Ok(Self { name, saved, file, lineage })
    }

    /// A child that need not be told from others.
    #[cfg(test)]
    pub(super) fn any_child(&self) -> MachineBuilder {
        MachineBuilder::new("child".to_owned()).clone_of(Arc::clone(&self.saved))
    }

    /// Makes the children of `plan`, and starts them. All of them, or none: all are built before any starts, and on an
    /// error nothing is left of them. Their numbers go on from those of the forks before, of the same machine and of its
    /// children, none of whom has what is another one's.
    pub fn fork(&self, hypervisor: &dyn Hypervisor, plan: &ForkPlan<'_>) -> Result<Vec<Machine>, ForkError> {
        if plan.children == 0 {
            return Err(ForkError::NoChildren);
        }
        let first = self.lineage.next.fetch_add(plan.children, Ordering::Relaxed);
        let numbers = first..first.saturating_add(plan.children);
        let prepared = numbers.map(|child| Ok((child, self.prepare(plan, child)?)));
        let prepared = prepared.collect::<Result<Vec<_>, ForkError>>()?;
        let mut children = Vec::with_capacity(prepared.len());
        for (child, builder) in prepared {
            let built = builder.build(hypervisor);
            children.push((child, built.map_err(|errors| ForkError::Build { child, errors })?));
        }
        for (child, machine) in &children {
            machine.start().map_err(|source| ForkError::Start { child: *child, source })?;
        }
        Ok(children.into_iter().map(|(_, machine)| machine).collect())
    }

    /// The parts of a child, whose identity is its own.
    fn prepare(&self, plan: &ForkPlan<'_>, child: u64) -> Result<MachineBuilder, ForkError> {
        let prepared = Panic::catch(|| {
            let devices = (plan.devices)(child).map_err(|source| ForkError::Devices { child, source })?;
            let mut builder = MachineBuilder::new(format!("{}-{child}", self.name)).devices(devices);
            if let Some(change) = &plan.change {
                builder = change(builder, child);
            }
            let builder = builder.clock(plan.clock).clone_of(Arc::clone(&self.saved));
            self.lineage.claims().claim(child, &builder.devices, &builder.shared)?;
            // A machine that is built here has none yet.
            let _ = builder.shared.lineage.set(Arc::clone(&self.lineage));
            Ok(builder)
        });
        prepared.unwrap_or_else(|panic| Err(ForkError::Panicked { child, message: panic.message }))
    }
}

const CALL: &str = "make a template of";

impl MachineHandle {
    /// A template of the machine as it is, which is paused while what it uses of its memory is copied, once, into a memfd.
    /// Then it goes on; one that is paused, or has not started, stays so.
    ///
    /// What is on disks is no part of it: see [`snapshot`](Self::snapshot).
    pub fn template(&self) -> Result<Template, SnapshotError> {
        Ok(self
            .template_by(|control, file| control.at_rest(CALL, |control| control.snapshot_to(file, None)))?
            .0)
    }

    /// The same of a machine that runs and goes on while its memory is copied, as by
    /// [`snapshot_live`](Self::snapshot_live), with what that asks of host and memory: the pause does not depend on how
    /// much memory there is. What its disks have goes on meanwhile, too: for guests that write to none, or whose children
    /// get new ones.
    ///
    /// ```
    /// # use ossature_core::machine::Machine;
    /// # use ossature_core::scripted::{Script, Scripted};
    /// # if ossature_memory::Userfault::open(ossature_memory::UserfaultMode::WriteProtected).is_err() { return Ok(()) }
    /// # let machine = Machine::builder("live").build(&Scripted::new([Script::new()]))?;
    /// machine.start()?;
    /// let (template, cost) = machine.template_live()?;
    /// println!("paused for {:?}", cost.paused);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn template_live(&self) -> Result<(Template, LiveSnapshot), SnapshotError> {
        self.template_by(|control, file| control.save_live(file, None))
    }

    /// A template whose file `save` writes: without a key, as it stays in memory, which nobody but this process can change.
    fn template_by<T>(
        &self,
        save: impl FnOnce(&mut Control, &File) -> Result<T, SnapshotError>,
    ) -> Result<(Template, T), SnapshotError> {
        let file = memory_file().map_err(|source| SnapshotError::Io { part: "memfd", source })?;
        let (saved, name, identities, key) = self.shared.control(CALL, |control| {
            let saved = save(control, &file);
            Ok(saved
                .map(|saved| (saved, control.name.clone(), control.board.identities(), control.key.clone())))
        })??;
        // Whoever has the descriptor can rely on it as much as this process.
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        fcntl_add_seals(&file, seals)
            .map_err(|e| SnapshotError::Io { part: "memory file", source: e.into() })?;
        let lineage = Arc::clone(self.shared.lineage.get_or_init(Arc::default));
        lineage.claims().of_parent(identities);
        Ok((Template::of(&name, Snapshot::from_file(file)?, lineage, key)?, saved))
    }

    /// Makes a [template](Self::template) of the machine, which goes on, and [forks](Template::fork) it.
    pub fn fork(&self, hypervisor: &dyn Hypervisor, plan: &ForkPlan<'_>) -> Result<Vec<Machine>, ForkError> {
        self.template()?.fork(hypervisor, plan)
    }
}

/// The descriptor of its file.
impl AsFd for Template {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
