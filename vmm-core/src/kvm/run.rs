//! The `kvm_run` page that a vCPU shares with the kernel: entering the guest, and reading why it was left.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{NonNull, addr_of, addr_of_mut};
use std::slice;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};

use kvm_bindings::{
    KVM_EXIT_ARM_NISV, KVM_EXIT_DIRTY_RING_FULL, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_OUT, KVM_EXIT_MEMORY_FAULT, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN,
    KVM_EXIT_SYSTEM_EVENT, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
    KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, KVMIO, kvm_run,
};
use kvm_ioctls::VcpuFd;
use ossature_bus::{AddressSpace, Size, VmRequest};
use vmm_sys_util::ioctl_io_nr;

use super::signal::{self, HasTarget, Target};
use super::sys;
use crate::arch::{self, KvmRegisters};
use crate::kick::Kick;
use crate::{CrashReason, KickSignal, Kicker};

ioctl_io_nr!(KVM_RUN, KVMIO, 0x80);

/// A vCPU's descriptor and its `kvm_run` page, for the one who runs it.
#[derive(Debug)]
pub(super) struct VcpuRun {
    shared: Arc<Shared>,
    entered: bool,
}

/// What kickers have too: they only ever touch `immediate_exit` and the target.
#[derive(Debug)]
struct Shared {
    /// Keeps the page mapped.
    fd: VcpuFd,
    page: NonNull<kvm_run>,
    page_size: usize,
    signal: KickSignal,
    target: Target,
}

// SAFETY: the page lives as long as `fd`. Through a shared reference only `immediate_exit` is accessed, and
// atomically; everything else in it only by the one `VcpuRun`, through `&mut`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// How `KVM_RUN` came back.
pub(super) enum Entered {
    /// With something to do: see [`VcpuRun::exit`].
    Exited,
    /// With nothing to do: enter again.
    Again,
    /// By a kick or a signal.
    Interrupted,
}

/// Why the guest was left.
pub(super) enum Exit<'a> {
    /// An I/O instruction: as many accesses of `size` as `data` holds (string instructions make several).
    Pio { port: u16, size: Size, write: bool, data: &'a mut [u8] },
    /// A memory access of 1 to 8 bytes.
    Mmio { address: u64, write: bool, data: &'a mut [u8] },
    /// HLT.
    Halt,
    /// A signal.
    Interrupted,
    /// The ring of dirty pages has no room left.
    DirtyRingFull,
    /// The guest asks for something through KVM's own interface.
    Request(VmRequest),
    /// An event of KVM's that is the architecture's.
    SystemEvent(u32),
    /// It cannot go on. With the instruction's bytes, where KVM gives them.
    Crash(CrashReason, Option<Vec<u8>>),
}

impl VcpuRun {
    /// Takes a vCPU whose page has `page_size` bytes.
    pub(super) fn new(mut fd: VcpuFd, page_size: usize, signal: KickSignal) -> Self {
        let page = NonNull::from(fd.get_kvm_run());
        Self {
            shared: Arc::new(Shared { fd, page, page_size, signal, target: Target::default() }),
            entered: false,
        }
    }

    /// The vCPU, for ioctls other than `KVM_RUN`.
    pub(super) fn fd(&self) -> &VcpuFd {
        &self.shared.fd
    }

    /// True if it may have run: until then it is as KVM resets it.
    pub(super) fn has_run(&self) -> bool {
        self.entered
    }

    /// Has the kernel take the registers when the guest is next entered. Returns false if vCPU `index` cannot have it that
    /// way.
    pub(super) fn leave_registers(&mut self, index: u32, registers: &KvmRegisters) -> bool {
        // SAFETY: the page is mapped, the kernel is not in it, and nobody else accesses registers in it.
        unsafe { arch::leave_in_page(self.shared.page, index, registers) }
    }

    /// The registers that were left and that the kernel has not taken yet.
    pub(super) fn left_registers(&self) -> Option<KvmRegisters> {
        // SAFETY: as above.
        unsafe { arch::left_in_page(self.shared.page) }
    }

    /// What was left and not taken yet counts no more.
    pub(super) fn forget_registers(&mut self) {
        // SAFETY: as above.
        unsafe { arch::forget_in_page(self.shared.page) }
    }

    /// Returns true if the guest may be in the middle of an access.
    pub(super) fn has_access(&self) -> bool {
        matches!(self.exit_reason(), KVM_EXIT_IO | KVM_EXIT_MMIO)
    }

    /// Where the access was that the last exit was for.
    pub(super) fn last_access(&self) -> Option<(AddressSpace, u64)> {
        let page = self.shared.page.as_ptr();
        // SAFETY: the page is mapped, the kernel is not in it, and the exit reason says which member of the union is
        // the valid one.
        unsafe {
            match self.exit_reason() {
                KVM_EXIT_IO => {
                    Some((AddressSpace::Pio, addr_of!((*page).__bindgen_anon_1.io.port).read().into()))
                }
                KVM_EXIT_MMIO => {
                    let address = addr_of!((*page).__bindgen_anon_1.mmio.phys_addr).read_unaligned();
                    Some((AddressSpace::Mmio, address))
                }
                _ => None,
            }
        }
    }

    /// Has the next entry complete the access under way and run nothing.
    pub(super) fn leave_at_once(&self) {
        self.shared.immediate_exit().swap(1, Ordering::SeqCst);
    }

    pub(super) fn kicker(&self) -> Kicker {
        Kicker::new(Arc::clone(&self.shared) as Arc<dyn Kick>)
    }

    /// Runs the guest. What the last exit's access read must be in place.
    #[inline]
    pub(super) fn enter(&mut self) -> Result<Entered, (&'static str, io::Error)> {
        if !self.shared.target.is_here() {
            self.bind()?;
        }
        // SAFETY: a vCPU's descriptor. The kernel writes to the page, which is ours alone, and to guest memory.
        let ret = unsafe { libc::ioctl(self.shared.fd.as_raw_fd(), KVM_RUN() as _, 0) };
        if ret == 0 { Ok(Entered::Exited) } else { self.not_entered(io::Error::last_os_error()) }
    }

    #[cold]
    fn not_entered(&mut self, error: io::Error) -> Result<Entered, (&'static str, io::Error)> {
        match error.raw_os_error() {
            Some(libc::EINTR) => {
                self.acknowledge_kick();
                // Accesses are complete. Older kernels leave the reason of the exit before.
                // SAFETY: the page is mapped, the kernel is not in it, and nobody else accesses this member.
                unsafe { addr_of_mut!((*self.shared.page.as_ptr()).exit_reason).write(KVM_EXIT_INTR) };
                Ok(Entered::Interrupted)
            }
            // A vCPU that waits to be started was woken.
            Some(libc::EAGAIN) => Ok(Entered::Again),
            // The only exits that come with an error.
            Some(libc::EFAULT | libc::EHWPOISON) if self.exit_reason() == KVM_EXIT_MEMORY_FAULT => {
                Ok(Entered::Exited)
            }
            _ => Err(("KVM_RUN", error)),
        }
    }

    /// Prepares the calling thread for being interrupted.
    #[cold]
    fn bind(&mut self) -> Result<(), (&'static str, io::Error)> {
        self.entered = true;
        match self.shared.signal {
            KickSignal::Masked(number) => {
                let mask = signal::block(number).map_err(|e| ("pthread_sigmask", e))?;
                sys::set_signal_mask(&self.shared.fd, mask).map_err(|e| ("KVM_SET_SIGNAL_MASK", e.into()))?;
            }
            // Whoever started the thread may have had it blocked.
            KickSignal::Handled(number) => {
                signal::unblock(number).map_err(|e| ("pthread_sigmask", e))?;
            }
        }
        let shared = Arc::downgrade(&self.shared) as Weak<dyn HasTarget>;
        self.shared.target.bind(shared).map_err(|e| ("binding a vCPU to its thread", e))
    }

    /// Makes room for the next kick. A kick that comes between the two steps loses its signal, but not its flag.
    fn acknowledge_kick(&self) {
        self.shared.immediate_exit().swap(0, Ordering::SeqCst);
        if let KickSignal::Masked(number) = self.shared.signal {
            signal::take(number);
        }
    }

    fn exit_reason(&self) -> u32 {
        // SAFETY: the page is mapped, and the kernel is not in it.
        unsafe { addr_of!((*self.shared.page.as_ptr()).exit_reason).read() }
    }

    /// Why the guest was left.
    #[inline]
    pub(super) fn exit(&mut self) -> Exit<'_> {
        match self.exit_reason() {
            KVM_EXIT_IO => self.pio(),
            KVM_EXIT_MMIO => self.mmio(),
            other => self.other_exit(other),
        }
    }

    #[inline]
    fn pio(&mut self) -> Exit<'_> {
        let page = self.shared.page.as_ptr();
        // SAFETY: the exit reason says that this member of the union is the valid one.
        let io = unsafe { addr_of!((*page).__bindgen_anon_1.io).read() };
        let len = io.count as usize * usize::from(io.size);
        let end = usize::try_from(io.data_offset).ok().and_then(|start| start.checked_add(len));
        let (Some(size), Some(end)) = (Size::from_len(io.size.into()), end) else {
            return unexpected(KVM_EXIT_IO);
        };
        if end > self.shared.page_size {
            return unexpected(KVM_EXIT_IO);
        }
        // SAFETY: the bytes lie in the mapping, behind the struct, and nobody else accesses them before the
        // next `KVM_RUN`, which needs `&mut self`.
        let data = unsafe { slice::from_raw_parts_mut(page.cast::<u8>().add(end - len), len) };
        Exit::Pio { port: io.port, size, write: u32::from(io.direction) == KVM_EXIT_IO_OUT, data }
    }

    #[inline]
    fn mmio(&mut self) -> Exit<'_> {
        // SAFETY: the exit reason says that this member of the union is the valid one. Nobody else accesses it
        // before the next `KVM_RUN`, which needs `&mut self`.
        let mmio = unsafe { &mut *addr_of_mut!((*self.shared.page.as_ptr()).__bindgen_anon_1.mmio) };
        let (address, write) = (mmio.phys_addr, mmio.is_write != 0);
        match mmio.data.get_mut(..mmio.len as usize) {
            Some(data) => Exit::Mmio { address, write, data },
            None => unexpected(KVM_EXIT_MMIO),
        }
    }

    #[cold]
    fn other_exit(&mut self, reason: u32) -> Exit<'_> {
        // SAFETY: the page is mapped, the kernel is not in it, and it outlives the reference. The reference
        // does not cover `immediate_exit`. Each member that is read below is plain numbers.
        let exit = unsafe { &*addr_of!((*self.shared.page.as_ptr()).__bindgen_anon_1) };
        match reason {
            KVM_EXIT_HLT => Exit::Halt,
            KVM_EXIT_INTR => {
                self.acknowledge_kick();
                Exit::Interrupted
            }
            KVM_EXIT_DIRTY_RING_FULL => Exit::DirtyRingFull,
            KVM_EXIT_SHUTDOWN => Exit::Crash(CrashReason::TripleFault, None),
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: the exit reason says that this member is the valid one.
                let hardware_reason = unsafe { exit.fail_entry.hardware_entry_failure_reason };
                Exit::Crash(CrashReason::FailedEntry { hardware_reason }, None)
            }
            KVM_EXIT_ARM_NISV => {
                // SAFETY: the exit reason says that this member is the valid one.
                let access = unsafe { exit.arm_nisv };
                let (address, syndrome) = (access.fault_ipa, access.esr_iss);
                Exit::Crash(CrashReason::UndecodedAccess { address, syndrome }, None)
            }
            KVM_EXIT_MEMORY_FAULT => {
                // SAFETY: the exit reason says that this member is the valid one.
                let fault = unsafe { exit.memory_fault };
                Exit::Crash(CrashReason::MemoryFault { address: fault.gpa, size: fault.size }, None)
            }
            KVM_EXIT_SYSTEM_EVENT => {
                // SAFETY: the exit reason says that this member is the valid one.
                match unsafe { exit.system_event.type_ } {
                    KVM_SYSTEM_EVENT_SHUTDOWN => Exit::Request(VmRequest::Shutdown),
                    KVM_SYSTEM_EVENT_RESET => Exit::Request(VmRequest::Reset),
                    KVM_SYSTEM_EVENT_CRASH => Exit::Request(VmRequest::GuestPanic),
                    other => Exit::SystemEvent(other),
                }
            }
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: the exit reason says that this member is the valid one.
                let internal = unsafe { exit.internal };
                if internal.suberror != KVM_INTERNAL_ERROR_EMULATION {
                    let data = internal.data.iter().take(internal.ndata as usize).copied().collect();
                    return Exit::Crash(CrashReason::Internal { suberror: internal.suberror, data }, None);
                }
                // SAFETY: the suberror says that this member is the valid one.
                let failure = unsafe { exit.emulation_failure };
                let has_bytes = failure.ndata > 0
                    && failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
                let code = has_bytes.then(|| {
                    // SAFETY: the flag says that the bytes are there; the union has no other member.
                    let insn = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
                    insn.insn_bytes.iter().take(insn.insn_size.into()).copied().collect()
                });
                Exit::Crash(CrashReason::Emulation, code)
            }
            exit_reason => unexpected(exit_reason),
        }
    }
}

fn unexpected(exit_reason: u32) -> Exit<'static> {
    Exit::Crash(CrashReason::UnexpectedExit { exit_reason }, None)
}

impl Shared {
    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the byte is mapped as long as `self.fd` lives, and everybody in this process accesses it
        // through this function. The kernel only reads it.
        unsafe { AtomicU8::from_ptr(addr_of_mut!((*self.page.as_ptr()).immediate_exit)) }
    }
}

impl HasTarget for Shared {
    fn target(&self) -> &Target {
        &self.target
    }
}

impl Kick for Shared {
    fn kick(&self) {
        // A kick that was not acknowledged yet has sent its signal, or is about to.
        if self.immediate_exit().swap(1, Ordering::SeqCst) == 0 {
            self.target.signal(self.signal);
        }
    }
}
