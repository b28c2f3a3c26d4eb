//! What the agent and the endpoint say to each other: a body is understood whole, or refused.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rekindle_protocol::{
    CancelRequest, CheckIn, CheckInAnswer, EnrollAnswer, EnrollRequest, Problem, ReimageAsk, ReimageStatus,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|data: &[u8]| {
    check::<CheckInAnswer>(data);
    check::<EnrollAnswer>(data);
    check::<ReimageStatus>(data);
    check::<Problem>(data);
    check::<EnrollRequest>(data);
    check::<CheckIn>(data);
    check::<ReimageAsk>(data);
    check::<CancelRequest>(data);
});

/// What is understood can be said, and is then understood as the same.
fn check<T: DeserializeOwned + Serialize>(data: &[u8]) {
    let Ok(read) = serde_json::from_slice::<T>(data) else { return };
    let said = serde_json::to_value(&read).expect("what was read can be written");
    let again: T = serde_json::from_value(said.clone()).expect("what was written can be read");
    assert_eq!(serde_json::to_value(&again).expect("it can be written again"), said);
}
