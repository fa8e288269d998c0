use std::io::Write;

use super::*;

/// A file as the kernel's: header, id, descriptors, data.
fn file(counters: &[(&str, u32, u16)], values: &[u64]) -> File {
    let name_size = 48u32;
    let descriptors = HEADER as u32 + name_size;
    let data = descriptors + counters.len() as u32 * (DESCRIPTOR as u32 + name_size);
    let header = [0, name_size, counters.len() as u32, HEADER as u32, descriptors, data];
    let mut bytes: Vec<u8> = header.iter().flat_map(|n| n.to_ne_bytes()).collect();
    bytes.resize(descriptors as usize, 0);
    for (name, offset, size) in counters {
        bytes.extend_from_slice(&[0; 6]);
        bytes.extend_from_slice(&size.to_ne_bytes());
        bytes.extend_from_slice(&offset.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        let end = bytes.len() + name_size as usize;
        bytes.extend_from_slice(name.as_bytes());
        bytes.resize(end, 0);
    }
    bytes.extend(values.iter().flat_map(|n| n.to_ne_bytes()));
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    file
}

#[test]
fn counters_have_names_and_values() {
    let reader =
        StatsReader::new(file(&[("exits", 8, 1), ("waits", 16, 3), ("halts", 0, 1)], &[7, 1, 2, 3, 4]))
            .unwrap();
    let stat = |name: &str, values: &[u64]| Stat {
        name: name.into(),
        kind: MetricKind::Counter,
        unit: MetricUnit::Count,
        values: values.into(),
    };
    assert_eq!(reader.read().unwrap(), [stat("exits", &[1]), stat("waits", &[2, 3, 4]), stat("halts", &[7])]);
}

#[test]
fn a4_kind_and_unit_are_the_kernels() {
    let metric = |flags: u32, exponent: i16| {
        let mut descriptor = [flags.to_ne_bytes(), [0; 4], [0; 4], [0; 4], *b"wait"].concat();
        descriptor[4..6].copy_from_slice(&exponent.to_ne_bytes());
        let found = counter(&descriptor).unwrap();
        (found.kind, found.unit)
    };
    assert_eq!(metric(0, 0), (MetricKind::Counter, MetricUnit::Count));
    assert_eq!(metric(TYPE_INSTANT | UNIT_BYTES, 0), (MetricKind::Gauge, MetricUnit::Bytes));
    assert_eq!(metric(TYPE_PEAK, 0), (MetricKind::Gauge, MetricUnit::Count));
    assert_eq!(metric(UNIT_SECONDS, -9), (MetricKind::Counter, MetricUnit::Nanoseconds));
    assert_eq!(metric(UNIT_SECONDS, -6), (MetricKind::Counter, MetricUnit::Other));
    assert_eq!(metric(UNIT_CYCLES, 0), (MetricKind::Counter, MetricUnit::Cycles));
    assert_eq!(metric(TYPE_INSTANT | UNIT_BOOLEAN, 0), (MetricKind::Gauge, MetricUnit::Boolean));
}

#[test]
fn a_description_that_makes_no_sense_is_an_error() {
    assert!(StatsReader::new(tempfile::tempfile().unwrap()).is_err(), "empty");
    let mut huge = tempfile::tempfile().unwrap();
    huge.write_all(&[0xff; 4096]).unwrap();
    assert!(StatsReader::new(huge).is_err(), "billions of counters");
    let reader = StatsReader::new(file(&[("exits", 800, 1)], &[1])).unwrap();
    assert!(reader.read().is_err(), "data beyond the end");
}
