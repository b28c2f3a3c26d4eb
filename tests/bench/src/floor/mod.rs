//! The floor: what the kernel and the hardware take, with nothing around it.
//!
//! These programs do the least that still restores or verifies a file. They know one kind of drift, keep no record, tell
//! nobody, trust their replicas and end at the first surprise. No product can be faster by the same method.

pub mod guard;
pub mod scan;
mod uring;
