//! The states of vCPUs and machines: there are none yet.

use std::marker::PhantomData;

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use ossature_bus::state::{SavedState, StateError};

use super::registers::KvmRegisters;
use super::setup::HostFacts;
use crate::{VmConfig, VmError};

const NONE: VmError = VmError::Unsupported { what: "a state on this architecture" };
const NONE_SAVED: StateError = StateError::Unsupported { reason: "there are no states on this architecture" };

/// Where a vCPU's state is read from and written to.
#[derive(Clone, Copy)]
pub(crate) struct VcpuAccess<'a>(PhantomData<&'a VcpuFd>);

impl<'a> VcpuAccess<'a> {
    pub(crate) fn new(
        _: &'a VmFd,
        _: (&'a VcpuFd, u32, bool),
        _: (&Kvm, &'a HostFacts),
        _: &VmConfig,
    ) -> Result<Self, VmError> {
        Err(NONE)
    }
}

/// The complete state of a vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VcpuParts {}

impl VcpuParts {
    pub(crate) fn read(_: VcpuAccess<'_>, _: Option<KvmRegisters>) -> Result<Self, VmError> {
        Err(NONE)
    }

    pub(crate) fn write(&self, _: VcpuAccess<'_>) -> Result<(), VmError> {
        match *self {}
    }

    pub(crate) fn check_features(&self, _: u32, _: (&Kvm, &HostFacts), _: &VmConfig) -> Result<(), VmError> {
        match *self {}
    }

    pub(crate) fn advance(&mut self, _: u64) {
        match *self {}
    }

    pub(crate) fn for_reset(self) -> Self {
        self
    }

    pub(crate) fn to_saved(&self) -> SavedState<'static> {
        match *self {}
    }

    pub(crate) fn from_saved(_: &SavedState<'_>) -> Result<Self, StateError> {
        Err(NONE_SAVED)
    }
}

/// What KVM keeps of a machine beside its vCPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VmParts {}

impl VmParts {
    pub(crate) fn read(_: &VmFd, _: &VmConfig) -> Result<Self, VmError> {
        Err(NONE)
    }

    pub(crate) fn write(&self, _: &VmFd, _: &VmConfig) -> Result<(), VmError> {
        match *self {}
    }

    pub(crate) fn age(&self) -> Option<u64> {
        match *self {}
    }

    pub(crate) fn advance(&mut self, _: u64) {
        match *self {}
    }

    pub(crate) fn write_chips(&self, _: &VmFd, _: &VmConfig) -> Result<(), VmError> {
        match *self {}
    }

    pub(crate) fn to_saved(&self) -> SavedState<'static> {
        match *self {}
    }

    pub(crate) fn from_saved(_: &SavedState<'_>) -> Result<Self, StateError> {
        Err(NONE_SAVED)
    }
}
