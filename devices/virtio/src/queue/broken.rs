//! The ways in which a driver can break a ring.

/// The driver broke the ring: nothing that it holds can be trusted any more. It latches: every later
/// call to the queue answers the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueueBroken {
    /// The available index claims more chains than the driver can own (virtio 1.2, 2.7.13.3).
    #[error(
        "available index {index} is out of reach from {next} with {in_flight} of {size} chains in flight"
    )]
    AvailIndex {
        /// What the driver wrote.
        index: u16,
        /// The index of the next chain that the device would take.
        next: u16,
        /// Chains that the device holds.
        in_flight: u16,
        /// The queue's size.
        size: u16,
    },
    /// A head lies outside the descriptor table.
    #[error("head {head} is outside the table of {size} descriptors")]
    Head {
        /// The head.
        head: u16,
        /// The queue's size.
        size: u16,
    },
    /// A head was offered again while the device still holds it.
    #[error("head {head} was offered again before the device gave it back")]
    HeadInFlight {
        /// The head.
        head: u16,
    },
    /// A `next` field points outside its table.
    #[error("next descriptor {next} is outside the table of {len} descriptors")]
    Next {
        /// The field.
        next: u16,
        /// Descriptors in the table.
        len: u16,
    },
    /// A chain has more descriptors than the queue (2.7.5.3.1), as one that loops has.
    #[error("a chain is longer than the queue of {size}")]
    ChainLength {
        /// The queue's size.
        size: u16,
    },
    /// A chain's buffers exceed 2^32 - 1 bytes (2.7.5.2).
    #[error("a chain has more than 4 GiB of buffers")]
    ChainBytes,
    /// A descriptor describes no byte.
    #[error("a descriptor has length 0")]
    EmptyDescriptor,
    /// A buffer for the device to read follows one to write (2.7.4.2).
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// A buffer, or an indirect table, is not guest RAM from its first to its last byte.
    #[error("buffer {addr:#x}+{len:#x} is not RAM")]
    NotRam {
        /// First byte.
        addr: u64,
        /// Length in bytes.
        len: u32,
    },
    /// An indirect descriptor without the feature, inside an indirect table, or with a next one (2.7.5.3.1).
    #[error("an indirect descriptor where none may be")]
    Indirect,
    /// An indirect table that holds no whole number of descriptors, none, or more than the queue.
    #[error("an indirect table of {len} bytes")]
    IndirectTable {
        /// Its length in bytes.
        len: u32,
    },
    /// A chain was completed on a queue that does not hold it: the device's own mistake.
    #[error("head {head} was completed but is not in flight")]
    NotInFlight {
        /// The head.
        head: u16,
    },
    /// The rings cannot be accessed: they were RAM when the queue started, and the machine has removed it since.
    #[error("the rings cannot be reached")]
    Rings,
}
