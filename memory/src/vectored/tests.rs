use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};

use vm_memory::GuestAddress;

use super::*;
use crate::{Ram, RamConfig, Segment, host_page_size};

const MIB: u64 = 1 << 20;

fn seg(addr: u64, len: u32) -> Segment {
    Segment { addr: GuestAddress(addr), len }
}

fn ram() -> Ram {
    Ram::new(&RamConfig::new(2 * MIB).gap(MIB..2 * MIB)).unwrap()
}

fn bytes(dma: &Dma, addr: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    dma.read(GuestAddress(addr), &mut bytes).unwrap();
    bytes
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

#[test]
fn a_file_round_trips_through_scattered_memory() {
    let dma = ram().dma();
    let mut file = tempfile::tempfile().unwrap();
    let data = pattern(10_000);
    file.write_all(&data).unwrap();
    let list = [seg(0x100, 3000), seg(2 * MIB, 0), seg(2 * MIB + 5, 6000), seg(0x9000, 900)];
    assert_eq!(dma.preadv(&file, &list, 100).unwrap(), 9900);
    assert_eq!(bytes(&dma, 0x100, 3000), data[100..3100]);
    assert_eq!(bytes(&dma, 2 * MIB + 5, 6000), data[3100..9100]);

    let copy = tempfile::tempfile().unwrap();
    assert_eq!(dma.pwritev(&copy, &list, 50).unwrap(), 9900);
    let mut back = vec![0; 9900];
    std::os::unix::fs::FileExt::read_exact_at(&copy, &mut back, 50).unwrap();
    assert_eq!(back, data[100..]);
}

#[test]
fn a15_a_short_read_goes_on_where_it_ended() {
    let dma = ram().dma();
    let data = pattern(64);
    let list = [seg(0x1000, 10), seg(0x3000, 30), seg(0x5000, 24)];
    for split in 0..=64 {
        let (mut tx, rx) = UnixStream::pair().unwrap();
        let mut all = Segments::from(&list);
        for part in [&data[..split], &data[split..]] {
            tx.write_all(part).unwrap();
            if !part.is_empty() {
                let read = dma.readv(&rx, all).unwrap();
                assert_eq!(read, part.len());
                all = all.skip(read as u64);
            }
        }
        assert!(all.is_empty());
        let mut got = [0; 64];
        assert_eq!(dma.gather(&list, &mut got).unwrap(), 64);
        assert_eq!(got[..], data);
    }
}

#[test]
fn the_end_of_a_file_is_a_short_read() {
    let dma = ram().dma();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"12345").unwrap();
    assert_eq!(dma.preadv(&file, &[seg(0, 100)], 2).unwrap(), 3);
    assert_eq!(dma.preadv(&file, &[seg(0, 100)], 5).unwrap(), 0);
    assert_eq!(dma.preadv(&file, &[seg(0, 100)], i64::MAX as u64).unwrap_or(0), 0);
    assert!(matches!(dma.preadv(&file, &[seg(0, 100)], u64::MAX), Err(DmaIoError::Io(_))));
}

#[test]
fn packets_keep_their_boundaries() {
    let dma = ram().dma();
    let (a, b) = UnixDatagram::pair().unwrap();
    dma.write(GuestAddress(0x1000), b"header").unwrap();
    dma.write(GuestAddress(0x2000), b"payload").unwrap();
    assert_eq!(dma.writev(&a, &[seg(0x1000, 6), seg(0x2000, 7)]).unwrap(), 13);
    let mut packet = [0; 64];
    let len = b.recv(&mut packet).unwrap();
    assert_eq!(&packet[..len], b"headerpayload");
    b.send(b"answer").unwrap();
    assert_eq!(dma.readv(&a, &[seg(0x3000, 2), seg(0x4000, 100)]).unwrap(), 6);
    assert_eq!(bytes(&dma, 0x4000, 4), b"swer");
}

#[test]
fn a_segment_may_span_adjacent_regions() {
    let page_size = host_page_size();
    let page = page_size as u64;
    let ranges: Vec<_> = (0..4).map(|i| (GuestAddress(i * page), page_size)).collect();
    let dma = Dma::new(std::sync::Arc::new(crate::GuestMmap::from_ranges(&ranges).unwrap()));
    let data = pattern(3 * page_size);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&data).unwrap();
    assert_eq!(dma.preadv(&file, &[seg(100, 3 * page_size as u32)], 0).unwrap(), data.len());
    assert_eq!(bytes(&dma, 100, data.len()), data);
}

#[test]
fn more_pieces_than_the_kernel_takes_make_a_short_transfer() {
    let dma = ram().dma();
    let list: Vec<Segment> = (0..1500).map(|i| seg(i * 64, 1)).collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&pattern(1500)).unwrap();
    let all = Segments::from(&list);
    assert_eq!(dma.preadv(&file, all, 0).unwrap(), MANY);
    assert_eq!(dma.preadv(&file, all.skip(MANY as u64), MANY as u64).unwrap(), 1500 - MANY);
    let mut got = vec![0; 1500];
    dma.gather(all, &mut got).unwrap();
    assert_eq!(got, pattern(1500));
}

#[test]
fn b9_memory_that_is_not_ram_is_refused_before_anything_is_transferred() {
    let dma = ram().dma();
    let (mut tx, rx) = UnixStream::pair().unwrap();
    tx.write_all(b"data").unwrap();
    for bad in [seg(MIB - 1, 2), seg(MIB, 1), seg(3 * MIB, 1), seg(u64::MAX, 2), seg(u64::MAX - 1, 1)] {
        for list in [vec![bad], vec![seg(0, 4), bad], [vec![seg(0, 1); 20], vec![bad]].concat()] {
            assert!(
                matches!(dma.readv(&rx, &list), Err(DmaIoError::Dma(DmaError::NotRam { .. }))),
                "{bad:?}"
            );
            assert!(
                matches!(dma.writev(&rx, &list), Err(DmaIoError::Dma(DmaError::NotRam { .. }))),
                "{bad:?}"
            );
        }
    }
    assert_eq!(dma.readv(&rx, &[seg(0, 16)]).unwrap(), 4);
    drop(rx);
    let mut rest = Vec::new();
    tx.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
}

#[test]
fn c4_reads_mark_exactly_what_they_wrote() {
    let ram = ram();
    let dma = ram.dma();
    let (mut tx, rx) = UnixStream::pair().unwrap();
    ram.slots().for_each(|slot| slot.dirty().start());
    tx.write_all(&[1; 5000]).unwrap();
    let list = [seg(0xff0, 32), seg(2 * MIB, 8000)];
    assert_eq!(dma.readv(&rx, &list).unwrap(), 5000);
    let taken: Vec<u64> = ram.slots().map(|slot| slot.dirty().take()[0]).collect();
    assert_eq!(taken, [0b11, 0b11]);
    dma.writev(&rx, &list).unwrap();
    assert!(ram.slots().all(|slot| slot.dirty().take()[0] == 0));
}

#[test]
fn a_failed_read_marks_all_that_it_may_have_written() {
    let ram = ram();
    ram.slots().for_each(|slot| slot.dirty().start());
    let folder = std::fs::File::open("/").unwrap();
    let error = ram.dma().preadv(&folder, &[seg(0, 1), seg(0x5000, 1)], 0).unwrap_err();
    assert!(matches!(error, DmaIoError::Io(e) if e.raw_os_error() == Some(libc::EISDIR)));
    assert_eq!(ram.slots().next().unwrap().dirty().take()[0], 0b10_0001);
}

#[test]
fn nothing_is_transferred_without_a_call() {
    let dma = ram().dma();
    let (_tx, rx) = UnixStream::pair().unwrap();
    // A readv on this socket would wait for ever.
    assert_eq!(dma.readv(&rx, &[seg(u64::MAX, 0)]).unwrap(), 0);
    assert_eq!(dma.readv(&rx, Segments::default()).unwrap(), 0);
}

#[test]
fn an_interrupted_call_is_made_again() {
    let dma = ram().dma();
    let calls = std::cell::Cell::new(0);
    let done = dma.transfer(Ends::default(), (&[seg(0, 8)]).into(), |_, pieces| {
        calls.set(calls.get() + 1);
        if calls.get() < 3 {
            // SAFETY: errno is this thread's own.
            unsafe { *libc::__errno_location() = libc::EINTR };
            return -1;
        }
        pieces as ssize_t
    });
    assert_eq!((done.unwrap(), calls.get()), (1, 3));
}

#[test]
fn a_spill_tells_a_packet_that_was_cut() {
    let dma = ram().dma();
    let (tx, rx) = UnixDatagram::pair().unwrap();
    let list = [seg(0x1000, 10), seg(0x3000, 20)];
    for (len, want) in [(29, 29), (30, 30), (31, 31), (500, 31)] {
        tx.send(&pattern(len)).unwrap();
        assert_eq!(dma.readv_spilling(&rx, &list, &mut [0]).unwrap(), want);
        let mut got = vec![0; len.min(30)];
        dma.gather(&list, &mut got).unwrap();
        assert_eq!(got, pattern(len)[..got.len()]);
    }
}

#[test]
fn a_head_and_segments_are_one_packet() {
    let dma = ram().dma();
    let (tx, rx) = UnixDatagram::pair().unwrap();
    let list: Vec<_> = (0..20).map(|i| seg(0x1000 * i, 3)).collect();
    for segment in &list {
        dma.write(segment.addr, b"abc").unwrap();
    }
    for pieces in [0, 1, 7, 8, 20] {
        assert_eq!(dma.writev_headed(&tx, b"head", &list[..pieces]).unwrap(), 4 + 3 * pieces);
        let mut packet = [0; 100];
        let len = rx.recv(&mut packet).unwrap();
        assert_eq!(packet[..len], [b"head".as_slice(), &b"abc".repeat(pieces)].concat());
    }
}

#[test]
fn what_a_socket_takes_is_sent_without_a_wait_and_without_a_signal() {
    let dma = ram().dma();
    let list = [seg(0x1000, 3), seg(0x3000, 4)];
    dma.write(list[0].addr, b"abc").unwrap();
    dma.write(list[1].addr, b"defg").unwrap();
    let (tx, mut rx) = UnixStream::pair().unwrap();
    assert_eq!(dma.send(&tx, &list).unwrap(), 7);
    let mut got = [0; 7];
    io::Read::read_exact(&mut rx, &mut got).unwrap();
    assert_eq!(&got, b"abcdefg");
    // The descriptor is a blocking one.
    let full = loop {
        if let Err(DmaIoError::Io(e)) = dma.send(&tx, &[seg(0, 0x1000)]) {
            break e;
        }
    };
    assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    drop(rx);
    // A signal that a thread blocks waits for it, whatever else the process does about it.
    let pending = || {
        // SAFETY: all sets outlive the calls, which concern this thread only.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigpending(&raw mut set);
            libc::sigismember(&raw const set, libc::SIGPIPE) == 1
        }
    };
    // SAFETY: as above.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut set, libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
    let broken = |result| matches!(result, Err(DmaIoError::Io(e)) if e.kind() == io::ErrorKind::BrokenPipe);
    assert!(broken(dma.send(&tx, &list)) && !pending());
    assert!(broken(dma.writev(&tx, &list)) && pending());
}
