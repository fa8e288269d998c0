//! Packets written to a file in the format of libpcap.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use ossature_bus::EventSink;
use ossature_memory::{Dma, Segments};

use super::counters::Counters;

/// Times are in nanoseconds.
const MAGIC: u32 = 0xa1b2_3c4d;
const VERSION: [u16; 2] = [2, 4];
const ETHERNET: u32 = 1;
/// Bytes of a packet that are kept.
const SNAP: std::ops::RangeInclusive<u32> = 64..=256 << 10;

/// A capture, if there is one.
#[derive(Debug, Default)]
pub(super) struct Capture {
    /// Spares workers the lock.
    on: AtomicBool,
    to: Mutex<Option<Pcap>>,
}

#[derive(Debug)]
struct Pcap {
    file: BufWriter<File>,
    snap: u32,
    /// The packet that is being written.
    bytes: Vec<u8>,
}

impl Capture {
    fn to(&self) -> MutexGuard<'_, Option<Pcap>> {
        self.to.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn start(&self, file: File, snap: u32) -> io::Result<()> {
        if !SNAP.contains(&snap) {
            let reason =
                format!("{snap} bytes of each packet; at least {} and at most {}", SNAP.start(), SNAP.end());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let mut file = BufWriter::new(file);
        let [major, minor] = VERSION;
        file.write_all(&MAGIC.to_ne_bytes())?;
        file.write_all(&[major.to_ne_bytes(), minor.to_ne_bytes()].concat())?;
        // The time zone and the accuracy of times, which nobody sets.
        file.write_all(&[0; 8])?;
        file.write_all(&[snap.to_ne_bytes(), ETHERNET.to_ne_bytes()].concat())?;
        file.flush()?;
        let before = self.to().replace(Pcap { file, snap, bytes: Vec::new() });
        self.on.store(true, Ordering::Relaxed);
        // Written out now, not under the lock.
        drop(before);
        Ok(())
    }

    pub(super) fn stop(&self) -> io::Result<bool> {
        self.on.store(false, Ordering::Relaxed);
        let stopped = self.to().take();
        stopped.map_or(Ok(false), |mut pcap| pcap.file.flush().map(|()| true))
    }

    /// Returns true if packets are to be [noted](Self::note).
    #[inline]
    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Notes a packet, without its virtio-net header.
    #[cold]
    pub(super) fn note(&self, mem: &Dma, frame: Segments<'_>, counters: &Counters, events: &EventSink) {
        let mut to = self.to();
        let Some(pcap) = &mut *to else { return };
        if let Err(e) = pcap.write(mem, frame) {
            self.fail(to, &e, counters, events);
        }
    }

    /// Makes what was noted visible in the file, after a batch.
    #[cold]
    pub(super) fn flush(&self, counters: &Counters, events: &EventSink) {
        let mut to = self.to();
        let Some(pcap) = &mut *to else { return };
        if let Err(e) = pcap.file.flush() {
            self.fail(to, &e, counters, events);
        }
    }

    fn fail(
        &self,
        mut to: MutexGuard<'_, Option<Pcap>>,
        e: &io::Error,
        counters: &Counters,
        events: &EventSink,
    ) {
        if let Some(pcap) = to.take() {
            // What could not be written is not tried again.
            drop(pcap.file.into_parts());
        }
        self.on.store(false, Ordering::Relaxed);
        drop(to);
        counters.host_errors.note(events, "write the capture, which ends", e);
    }
}

impl Pcap {
    fn write(&mut self, mem: &Dma, frame: Segments<'_>) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let kept = frame.len().min(self.snap.into()) as usize;
        self.bytes.resize(kept, 0);
        let read = mem.gather(frame, &mut self.bytes).unwrap_or_default();
        self.bytes.truncate(read);
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        for word in [now.as_secs() as u32, now.subsec_nanos(), read as u32, len] {
            self.file.write_all(&word.to_ne_bytes())?;
        }
        self.file.write_all(&self.bytes)
    }
}
