//! What the agent and the courier read of each other: a message is taken whole, or refused and set aside.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rekindle::spool::{
    CheckInState, CourierState, FetchNow, FetchResult, ReimageReply, Slot, Spool, SpoolError, queued_at,
};
use rekindle_fuzz::{put, scratch};

const ID: &str = "1790000000000-0123456789abcdef";

fuzz_target!(|data: &[u8]| {
    let spool = Spool::open(scratch()).expect("the directory is there");
    // A message says which it is: the fuzzer need not guess it.
    put(&scratch().join(format!("{ID}.json")), data);
    match spool.read(ID) {
        Ok(message) => {
            let message = message.expect("it was put there");
            assert!(queued_at(&message.id).is_some());
            spool.enqueue(&message).map(drop).expect("what was read can be written");
            assert_eq!(spool.read(ID).expect("it can be read again"), Some(message));
            assert!(spool.remove(ID).expect("it can be removed"));
        }
        Err(SpoolError::Refused { .. }) => assert_eq!(spool.read(ID).expect("it was set aside"), None),
        Err(error) => panic!("{error}"),
    }
    slot::<CheckInState>(&spool, data);
    slot::<FetchNow>(&spool, data);
    slot::<FetchResult>(&spool, data);
    slot::<ReimageReply>(&spool, data);
    slot::<CourierState>(&spool, data);
});

fn slot<T: Slot + PartialEq + std::fmt::Debug>(spool: &Spool, data: &[u8]) {
    put(&scratch().join(T::NAME), data);
    match spool.read_slot::<T>() {
        Ok(read) => {
            let read = read.expect("it was put there");
            spool.write_slot(&read).expect("what was read can be written");
            assert_eq!(spool.read_slot::<T>().expect("it can be read again"), Some(read));
        }
        Err(error) => assert!(matches!(error, SpoolError::Refused { .. }), "{error}"),
    }
}
