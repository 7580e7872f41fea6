//! The bytes from the kernel, cut and changed everywhere: a decoder that cannot be made to panic or to guess.

use grace_common::{FileDirty, InodeKey, KIND_FILE_DIRTY, KIND_TASK_EXIT, Record, Sender, Task, TaskExit};
use proptest::prelude::*;

const TASK: Task =
    Task { tgid: 1, tid: 2, uid: 3, _pad: 0, cgroup: 4, comm: *b"name\0\0\0\0\0\0\0\0\0\0\0\0" };

fn dirty() -> FileDirty {
    FileDirty {
        header: grace_common::Header { at_ns: 9, kind: KIND_FILE_DIRTY, cpu: 1, seq: 7 },
        inode: InodeKey { dev: 5, _pad: 0, ino: 6 },
        flags: 7,
        _pad: 0,
        task: TASK,
    }
}

fn exit() -> TaskExit {
    TaskExit {
        max_rss_pages: 12,
        root: 0,
        oom_victim: 0,
        header: grace_common::Header { at_ns: 9, kind: KIND_TASK_EXIT, cpu: 1, seq: 7 },
        status: 9,
        ppid: 1,
        start_ns: 2,
        task: TASK,
        sender: Sender { at_ns: 3, code: 0, _pad: 0, task: TASK },
    }
}

/// The bytes of a record, put together by hand in the documented order.
fn bytes(words: &[&[u8]]) -> Vec<u8> {
    words.concat()
}

fn task_bytes() -> Vec<u8> {
    bytes(&[
        &1u32.to_ne_bytes(),
        &2u32.to_ne_bytes(),
        &3u32.to_ne_bytes(),
        &0u32.to_ne_bytes(),
        &4u64.to_ne_bytes(),
        &TASK.comm,
    ])
}

fn dirty_bytes() -> Vec<u8> {
    bytes(&[
        &9u64.to_ne_bytes(),
        &KIND_FILE_DIRTY.to_ne_bytes(),
        &1u32.to_ne_bytes(),
        &7u64.to_ne_bytes(),
        &5u32.to_ne_bytes(),
        &0u32.to_ne_bytes(),
        &6u64.to_ne_bytes(),
        &7u32.to_ne_bytes(),
        &0u32.to_ne_bytes(),
        &task_bytes(),
    ])
}

fn exit_bytes() -> Vec<u8> {
    bytes(&[
        &9u64.to_ne_bytes(),
        &KIND_TASK_EXIT.to_ne_bytes(),
        &1u32.to_ne_bytes(),
        &7u64.to_ne_bytes(),
        &9u32.to_ne_bytes(),
        &1u32.to_ne_bytes(),
        &2u64.to_ne_bytes(),
        &12u64.to_ne_bytes(),
        &0u32.to_ne_bytes(),
        &0u32.to_ne_bytes(),
        &task_bytes(),
        &3u64.to_ne_bytes(),
        &0i32.to_ne_bytes(),
        &0u32.to_ne_bytes(),
        &task_bytes(),
    ])
}

#[test]
fn records_decode_to_what_was_written() {
    assert_eq!(FileDirty::from_bytes(&dirty_bytes()), Some(dirty()));
    assert_eq!(TaskExit::from_bytes(&exit_bytes()), Some(exit()));
}

#[test]
fn a_record_of_another_kind_or_length_is_refused() {
    assert_eq!(TaskExit::from_bytes(&dirty_bytes()), None);
    assert_eq!(FileDirty::from_bytes(&exit_bytes()), None);
    for (whole, name) in [(dirty_bytes(), "dirty"), (exit_bytes(), "exit")] {
        for length in 0..whole.len() {
            let cut = &whole[..length];
            assert!(
                FileDirty::from_bytes(cut).is_none() && TaskExit::from_bytes(cut).is_none(),
                "{name} cut at {length}"
            );
        }
        let mut long = whole.clone();
        long.push(0);
        assert!(
            FileDirty::from_bytes(&long).is_none() && TaskExit::from_bytes(&long).is_none(),
            "{name} with a byte more"
        );
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_record_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let kind = grace_common::kind(&bytes);
        if let Some(record) = FileDirty::from_bytes(&bytes) {
            prop_assert_eq!(kind, Some(KIND_FILE_DIRTY));
            prop_assert_eq!(bytes.len(), size_of_val(&record));
        }
        if TaskExit::from_bytes(&bytes).is_some() {
            prop_assert_eq!(kind, Some(KIND_TASK_EXIT));
        }
    }
}
