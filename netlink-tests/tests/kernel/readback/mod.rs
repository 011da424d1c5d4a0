//! Tables with something of everything, and independent programs' views of what the kernel holds of them.

pub(crate) mod fixtures;
pub(crate) mod json;
pub(crate) mod libnftnl;
pub(crate) mod view;
