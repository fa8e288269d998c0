use super::*;

const MIB: u64 = 1 << 20;

fn table(slots: &[(u64, u64)], present: &[usize]) -> MemoryTable {
    let mut table = MemoryTable::with_slots(slots.iter().copied()).unwrap();
    present.iter().for_each(|at| table.chunks[*at] = Some(0x1234));
    table
}

#[test]
fn a_table_is_read_as_it_was_written() {
    for table in [
        table(&[(0, 64 << 10)], &[0]),
        table(&[(0, 20 * MIB)], &[]),
        table(&[(0, 20 * MIB), (1 << 32, 3 * MIB), (1 << 33, 4096)], &[0, 3, 9, 10, 11, 12]),
    ] {
        assert_eq!(MemoryTable::load(&table.save()).unwrap(), table);
    }
    let table = table(&[(0, 3 * MIB + 4096), (1 << 32, 2 * MIB)], &[]);
    assert_eq!(table.slots[1].offset, 3 * MIB + (64 << 10), "on a boundary of the file");
    assert_eq!((table.len(), table.size()), (5 * MIB + (64 << 10), 5 * MIB + 4096));
}

#[test]
fn slots_that_cannot_be_are_refused() {
    let none: [&[(u64, u64)]; 7] = [
        &[],
        &[(0, 0)],
        &[(0, 2 * MIB), (MIB, MIB)],
        &[(1 << 32, MIB), (0, MIB)],
        &[(0, u64::MAX)],
        &[(u64::MAX - MIB + 1, 2 * MIB)],
        &[(0, (MAX_CHUNKS as u64 + 1) * CHUNK)],
    ];
    for slots in none {
        assert_eq!(MemoryTable::with_slots(slots.iter().copied()), None, "{slots:x?}");
    }
    let many = |count: usize| MemoryTable::with_slots((0..count as u64).map(|n| (n * MIB, 4096)));
    assert!(MemoryTable::load(&many(MAX_SLOTS).unwrap().save()).is_ok());
    assert_eq!(many(MAX_SLOTS + 1), None);
    for slots in [[(4096, MIB)], [(0, 4095)]] {
        let table = MemoryTable::with_slots(slots.into_iter()).unwrap();
        assert!(MemoryTable::load(&table.save()).is_err(), "{slots:x?}");
    }
}

#[test]
fn d2_checksums_and_chunks_that_do_not_fit_are_refused() {
    let good = table(&[(0, 20 * MIB)], &[0, 9]);
    let with = |present: &[u8], checksums: &[u8]| {
        let mut fields = Encoder::new(KIND, 1);
        fields.list(SLOTS, &good.slots, |fields, slot| {
            fields.u64(ADDRESS, slot.addr).u64(SIZE, slot.size);
        });
        fields.bytes(PRESENT, present).bytes(CHECKSUMS, checksums);
        MemoryTable::load(&fields.finish())
    };
    assert!(with(&[1, 2], &[0; 8]).is_ok());
    assert!(with(&[1, 6], &[0; 12]).is_err(), "a chunk behind the last");
    for present in [&[1][..], &[1, 2, 0], &[]] {
        assert!(with(present, &[0; 8]).is_err(), "{present:?}");
    }
    for checksums in [0, 4, 7, 9, 12] {
        assert!(with(&[1, 2], &vec![0; checksums]).is_err(), "{checksums}");
    }
}

#[test]
fn what_is_zero_is_not_mapped_and_the_pieces_are_few() {
    let pieces = |table: &MemoryTable| -> Vec<(u64, u64, u64)> {
        table.pieces(ALIGN).iter().map(|piece| (piece.addr.0, piece.offset, piece.len)).collect()
    };
    let small = table(&[(0, 9 * MIB), (1 << 32, 3 * MIB)], &[0, 2, 3, 4, 5]);
    let second = small.slots[1].offset + ALIGN;
    assert_eq!(
        pieces(&small),
        [(0, ALIGN, 2 * MIB), (4 * MIB, ALIGN + 4 * MIB, 5 * MIB), (1 << 32, second, 2 * MIB)]
    );
    // Every second chunk of 4 GiB: some zeros are mapped, too, and all that is there.
    let odd: Vec<usize> = (0..2048).filter(|at| at % 2 == 1).collect();
    let large = table(&[(0, 4096 * MIB)], &odd);
    let all = pieces(&large);
    assert!(all.len() <= MAX_PIECES, "{}", all.len());
    for at in odd {
        let addr = at as u64 * CHUNK;
        assert!(all.iter().any(|(first, _, len)| (*first..first + len).contains(&addr)), "{at}");
    }
    // One chunk here and there is mapped alone.
    let sparse = table(&[(0, 4096 * MIB)], &[7, 700, 2047]);
    assert_eq!(pieces(&sparse).iter().map(|(.., len)| len).sum::<u64>(), 3 * CHUNK);
    let many: Vec<(u64, u64)> = (0..2 * MAX_PIECES as u64).map(|n| (2 * n * CHUNK, CHUNK)).collect();
    assert_eq!(pieces(&table(&many, &[0, 1, 2])).len(), 3);
}

#[test]
fn slots_that_were_added_are_slots_again_wherever_they_are() {
    for (added, gap) in [(4 * MIB, None), (6 * MIB, None), (1 << 33, Some(3 * MIB..1 << 32))] {
        let config = RamConfig::new(4 * MIB);
        let config = gap.into_iter().fold(config, RamConfig::gap);
        let ram = Ram::new(&config).unwrap();
        ram.add_slot(added, 2 * MIB, &config.backing).unwrap();
        let table = MemoryTable::of(&ram).unwrap();
        for asked in [None, Some(6 * MIB)] {
            let config = table.config(asked.map(RamConfig::new)).unwrap();
            let again = Ram::new(&config).unwrap();
            table.add_slots(&again, &config).unwrap();
            table.expect_slots(&again).unwrap();
        }
        assert!(table.config(Some(RamConfig::new(5 * MIB))).is_err());
    }
}

#[test]
fn memory_comes_back_as_it_was_with_holes_for_zeros() {
    let config = RamConfig::new(5 * MIB).gap(3 * MIB..1 << 32);
    let ram = Ram::new(&config).unwrap();
    ram.add_slot(1 << 33, 2 * MIB, &config.backing).unwrap();
    let dma = ram.dma();
    let written = [0, 4096 - 3, 2 * MIB + 5, (1 << 32) + 4096 * 7, (1 << 33) + 2 * MIB - 1];
    written.iter().for_each(|at| dma.write(GuestAddress(*at), &[0xa5]).unwrap());
    let mut table = MemoryTable::of(&ram).unwrap();
    let file = tempfile::tempfile().unwrap();
    file.set_len(ALIGN + table.len()).unwrap();
    table.write(&ram, &file, ALIGN).unwrap();
    table.verify(&mut &file, ALIGN).unwrap();
    assert!(table.chunks.iter().filter(|chunk| chunk.is_some()).count() == 4, "{:?}", table.chunks);
    use std::os::unix::fs::MetadataExt;
    assert!(file.metadata().unwrap().blocks() * 512 <= 64 << 10);

    // Copied, it takes no more.
    let config = table.config(None).unwrap().backing(Backing::Memfd);
    let copied = Ram::new(&config).unwrap();
    table.add_slots(&copied, &config).unwrap();
    table.copy(&copied, &mut &file, ALIGN).unwrap();
    written.iter().for_each(|at| assert_eq!(copied.dma().read_obj::<u8>(GuestAddress(*at)).unwrap(), 0xa5));
    let backing = copied.slots().next().unwrap().file().unwrap().file().metadata().unwrap();
    assert!(backing.blocks() * 512 <= 64 << 10, "{}", backing.blocks());

    let config = table.config(None).unwrap();
    let again = Ram::new(&config).unwrap();
    table.add_slots(&again, &config).unwrap();
    table.fill(&again, &file, ALIGN).unwrap();
    let dma = again.dma();
    for at in written {
        assert_eq!(dma.read_obj::<u8>(GuestAddress(at)).unwrap(), 0xa5, "{at:#x}");
    }
    assert_eq!(dma.read_obj::<u8>(GuestAddress(1)).unwrap(), 0);
    // Its own: the file keeps what it has.
    dma.write(GuestAddress(0), &[1]).unwrap();
    table.verify(&mut &file, ALIGN).unwrap();
    // What was a hole is no hole any more.
    file.write_all_at(&[1], ALIGN + 2 * MIB + MIB).unwrap();
    table.verify(&mut &file, ALIGN).unwrap_err();
}

#[test]
fn shared_memory_that_nobody_has_touched_takes_nothing_when_it_is_saved() {
    use std::os::unix::fs::MetadataExt;
    let ram = Ram::new(&RamConfig::new(64 * MIB).backing(Backing::Memfd).gap(16 * MIB..32 * MIB)).unwrap();
    let dma = ram.dma();
    for at in [0, 16 * MIB - 1, 33 * MIB + 5] {
        dma.write(GuestAddress(at), &[0xa5]).unwrap();
    }
    let taken = || ram.slots().next().unwrap().file().unwrap().file().metadata().unwrap().blocks() * 512;
    let before = taken();
    let file = tempfile::tempfile().unwrap();
    let mut table = MemoryTable::of(&ram).unwrap();
    file.set_len(ALIGN + table.len()).unwrap();
    table.write(&ram, &file, ALIGN).unwrap();
    assert_eq!(taken(), before);
    assert!(before < MIB, "{before}");
    let again = Ram::new(&table.config(None).unwrap()).unwrap();
    table.fill(&again, &file, ALIGN).unwrap();
    for at in [0, 16 * MIB - 1, 33 * MIB + 5] {
        assert_eq!(again.dma().read_obj::<u8>(GuestAddress(at)).unwrap(), 0xa5, "{at:#x}");
    }
}
