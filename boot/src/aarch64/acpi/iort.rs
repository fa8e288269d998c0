//! The IORT: messages of the one PCI bus go to the ITS, with requester ids as they are (Arm DEN 0049, revision D).

use acpi_tables::AmlSink;

/// Of the table's common part, after which the nodes begin.
const HEADER: u32 = 48;
const ITS_GROUP: u8 = 0;
const ITS_GROUP_LEN: u16 = 24;
const ROOT_COMPLEX: u8 = 2;
const ROOT_COMPLEX_LEN: u16 = 36;
const MAPPING_LEN: u16 = 20;
/// The requester ids of a bus.
const IDS: u32 = 0x100;
/// Memory accesses are coherent, and need not be made so.
const COHERENT: u32 = 1;
const CPM_AND_DACS: u8 = 0b11;
const ADDRESS_BITS: u8 = 64;

pub(super) fn body(out: &mut Vec<u8>) {
    let (nodes, reserved, revision, mappings, identifier) = (2, 0, 0, 1, 0);
    out.dword(nodes);
    out.dword(HEADER);
    out.dword(reserved);

    let group = HEADER;
    out.byte(ITS_GROUP);
    out.word(ITS_GROUP_LEN);
    out.byte(revision);
    out.dword(reserved);
    let (no_mappings, mapping_offset) = (0, 0);
    out.dword(no_mappings);
    out.dword(mapping_offset);
    out.dword(1);
    out.dword(identifier);

    out.byte(ROOT_COMPLEX);
    out.word(ROOT_COMPLEX_LEN + MAPPING_LEN);
    out.byte(revision);
    out.dword(reserved);
    out.dword(mappings);
    out.dword(ROOT_COMPLEX_LEN.into());
    out.dword(COHERENT);
    let hints = 0;
    out.byte(hints);
    out.word(0);
    out.byte(CPM_AND_DACS);
    let (no_ats, segment) = (0, 0);
    out.dword(no_ats);
    out.dword(segment);
    out.byte(ADDRESS_BITS);
    out.vec(&[0; 3]);

    let (first, output, flags) = (0, 0, 0);
    out.dword(first);
    out.dword(IDS - 1);
    out.dword(output);
    out.dword(group);
    out.dword(flags);
}
