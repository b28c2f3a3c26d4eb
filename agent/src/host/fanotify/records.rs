//! Takes apart what fanotify wrote into a buffer. A pure function of the bytes: it opens, owns and closes nothing.
//!
//! It never reads beyond the bytes, never allocates, and always ends, whatever they are. After the first thing that it does
//! not understand it says so and stops: its caller must then assume that events were lost.

/// The layout that is understood; the kernel has had no other since 2009.
const VERSION: u8 = 3;
/// Size of `struct fanotify_event_metadata`.
const METADATA: usize = 24;
/// Size of `struct fanotify_event_info_header`.
const INFO: usize = 4;
/// Size of file system id, length and type, which come before the bytes of a handle.
const HANDLE: usize = 16;

/// One event, as the kernel wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// `FAN_*`.
    pub mask: u64,
    /// An open file; negative when there is none.
    pub fd: i32,
    /// A process id.
    pub pid: i32,
    /// A descriptor of that process; negative when there is none.
    pub pidfd: i32,
    /// File system id and handle of the directory; empty when there is none.
    pub directory: &'a [u8],
    /// The name in it; empty when there is none, or when it is `.`.
    pub name: &'a [u8],
}

/// The bytes are not what the kernel is documented to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// The events in a buffer.
#[derive(Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// Of what one call of read() returned.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let (record, rest) = record(self.rest).map_or((Err(Malformed), &[][..]), |(record, rest)| (Ok(record), rest));
        self.rest = rest;
        Some(record)
    }
}

fn record(bytes: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(array(bytes, 0)?)).ok()?;
    let metadata_length = usize::from(u16::from_ne_bytes(array(bytes, 6)?));
    if bytes.get(4) != Some(&VERSION) || metadata_length < METADATA || metadata_length > length {
        return None;
    }
    let (event, rest) = bytes.split_at_checked(length)?;
    let mut record = Record {
        mask: u64::from_ne_bytes(array(event, 8)?),
        fd: i32::from_ne_bytes(array(event, 16)?),
        pid: i32::from_ne_bytes(array(event, 20)?),
        pidfd: -1,
        directory: &[],
        name: &[],
    };
    let mut infos = event.get(metadata_length..)?;
    while !infos.is_empty() {
        let length = usize::from(u16::from_ne_bytes(array(infos, 2)?));
        let (info, rest) = infos.split_at_checked(length.max(INFO))?;
        infos = rest;
        let body = info.get(INFO..)?;
        match info.first().copied()? {
            libc::FAN_EVENT_INFO_TYPE_DFID_NAME | libc::FAN_EVENT_INFO_TYPE_DFID => {
                let handle = usize::try_from(u32::from_ne_bytes(array(body, 8)?)).ok()?;
                let (directory, name) = body.split_at_checked(HANDLE.checked_add(handle)?)?;
                record.directory = directory;
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                record.name = if name == b"." { &[] } else { name };
            }
            libc::FAN_EVENT_INFO_TYPE_PIDFD => record.pidfd = i32::from_ne_bytes(array(body, 0)?),
            // Of other records there are some, and there will be more; each says how long it is.
            _ => {}
        }
    }
    Some((record, rest))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn info(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = (INFO + body.len()).next_multiple_of(4);
        let mut info = vec![kind, 0];
        info.extend(u16::try_from(length).unwrap().to_ne_bytes());
        info.extend(body);
        info.resize(length, 0);
        info
    }

    fn directory(handle: &[u8], name: &[u8]) -> Vec<u8> {
        let mut body = vec![7; 8];
        body.extend(u32::try_from(handle.len()).unwrap().to_ne_bytes());
        body.extend(1_i32.to_ne_bytes());
        body.extend(handle);
        body.extend(name);
        body.push(0);
        body
    }

    fn event(mask: u64, pid: i32, infos: &[Vec<u8>]) -> Vec<u8> {
        let infos = infos.concat();
        let mut event = u32::try_from(METADATA + infos.len()).unwrap().to_ne_bytes().to_vec();
        event.extend([VERSION, 0]);
        event.extend(u16::try_from(METADATA).unwrap().to_ne_bytes());
        event.extend(mask.to_ne_bytes());
        event.extend((-1_i32).to_ne_bytes());
        event.extend(pid.to_ne_bytes());
        event.extend(infos);
        event
    }

    fn write(name: &[u8]) -> Vec<u8> {
        let pidfd = info(libc::FAN_EVENT_INFO_TYPE_PIDFD, &9_i32.to_ne_bytes());
        event(libc::FAN_MODIFY, 42, &[info(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, &directory(b"handle", name)), pidfd])
    }

    #[test]
    fn an_event_is_taken_apart() {
        let bytes = [write(b"t"), write(b"longer name")].concat();
        let records: Vec<_> = Records::new(&bytes).map(Result::unwrap).collect();
        let names: Vec<_> = records.iter().map(|record| record.name).collect();
        assert_eq!(names, [&b"t"[..], b"longer name"]);
        let Record { mask, fd, pid, pidfd, directory, name: _ } = records[0];
        assert_eq!((mask, fd, pid, pidfd), (libc::FAN_MODIFY, -1, 42, 9));
        assert_eq!(directory, &super::tests::directory(b"handle", b"")[..HANDLE + 6]);
    }

    #[test]
    fn a_directory_itself_has_no_name_and_an_overflow_has_nothing() {
        let itself = [event(libc::FAN_ATTRIB, 1, &[info(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, &directory(b"h", b"."))])];
        assert_eq!(Records::new(&itself.concat()).next().unwrap().unwrap().name, b"");
        let nameless = event(libc::FAN_ATTRIB, 1, &[info(libc::FAN_EVENT_INFO_TYPE_DFID, &directory(b"h", b""))]);
        assert_eq!(Records::new(&nameless).next().unwrap().unwrap().name, b"");
        let overflow = event(libc::FAN_Q_OVERFLOW, 0, &[]);
        let record = Records::new(&overflow).next().unwrap().unwrap();
        assert_eq!((record.mask, record.directory, record.pidfd), (libc::FAN_Q_OVERFLOW, &[][..], -1));
    }

    #[test]
    fn records_of_a_kind_that_is_not_known_are_passed_over() {
        let known = info(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, &directory(b"h", b"t"));
        let bytes = event(libc::FAN_CREATE, 1, &[info(200, b"future"), known, info(201, b"")]);
        assert_eq!(Records::new(&bytes).next().unwrap().unwrap().name, b"t");
    }

    #[test]
    fn truncated_events_are_malformed_and_end_it() {
        let whole = [write(b"first"), write(b"second")].concat();
        let first = write(b"first").len();
        for length in 1..whole.len() {
            let read: Vec<_> = Records::new(&whole[..length]).collect();
            let n_whole = usize::from(length >= first);
            assert_eq!(read.iter().filter(|record| record.is_ok()).count(), n_whole, "of {length} bytes");
            assert_eq!(read.iter().any(Result::is_err), length != first, "of {length} bytes");
        }
    }

    #[test]
    fn lengths_that_lie_are_malformed() {
        let lie = |at: usize, bytes: &[u8]| {
            let mut event = write(b"t");
            event[at..at + bytes.len()].copy_from_slice(bytes);
            Records::new(&event).map(|record| record.is_ok()).collect::<Vec<_>>()
        };
        let longer = u32::MAX.to_ne_bytes();
        let none = [false];
        assert_eq!(lie(0, &longer), none, "event");
        assert_eq!(lie(0, &[0; 4]), none, "an event of no length would never end");
        assert_eq!(lie(4, &[2]), none, "version");
        assert_eq!(lie(6, &[0, 0]), none, "metadata");
        assert_eq!(lie(6, &[255, 255]), none, "metadata");
        assert_eq!(lie(METADATA + 2, &[255, 255]), none, "record");
        assert_eq!(lie(METADATA + 2, &[0, 0]), none, "a record of no length");
        assert_eq!(lie(METADATA + INFO + 8, &longer), none, "handle");
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            prop_assert!(Records::new(&bytes).count() <= bytes.len() / METADATA + 1);
        }

        #[test]
        fn any_damage_ends(at in 0_usize..120, byte in any::<u8>(), name in prop::collection::vec(1_u8.., 0..255)) {
            let mut bytes = [write(&name), write(&name)].concat();
            let place = at % bytes.len();
            bytes[place] = byte;
            for record in Records::new(&bytes).flatten() {
                prop_assert!(record.directory.len() + record.name.len() <= bytes.len());
            }
        }
    }
}
