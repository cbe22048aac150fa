//! What every storage must do, whoever keeps the objects: the vault and the arbiter both stand on this and on no more.

use std::sync::{Arc, Barrier};
use std::thread;

use lifeboat_vault::storage::{Faulty, FsStorage, MemoryStorage, Put, Storage, StorageError};

/// Each implementation, and the decorator over one of them.
fn on_every_storage(conforms: impl Fn(Arc<dyn Storage>)) {
    let directory = tempfile::tempdir().unwrap();
    conforms(Arc::new(FsStorage::open(directory.path()).unwrap()));
    conforms(Arc::new(MemoryStorage::new()));
    conforms(Faulty::new(Arc::new(MemoryStorage::new())));
}

#[test]
fn an_object_is_created_once_replaced_whole_and_gone_when_deleted() {
    on_every_storage(|storage| {
        assert_eq!(storage.put_if_absent("a/one", b"first").unwrap(), Put::Created);
        assert_eq!(storage.put_if_absent("a/one", b"second").unwrap(), Put::Exists);
        assert_eq!(storage.get("a/one").unwrap(), b"first", "what was there is not touched");
        storage.put("a/one", b"a longer third").unwrap();
        storage.put("a/one", b"4th").unwrap();
        assert_eq!(storage.get("a/one").unwrap(), b"4th", "nothing of what was longer is left");
        storage.delete("a/one").unwrap();
        storage.delete("a/one").unwrap();
        assert!(storage.get("a/one").unwrap_err().is_not_found());
        assert!(storage.get_range("a/one", 0, 1).unwrap_err().is_not_found());
        assert_eq!(storage.put_if_absent("a/one", b"").unwrap(), Put::Created, "a name is free again");
        assert_eq!(storage.get("a/one").unwrap(), b"");
    });
}

#[test]
fn a_range_is_short_only_where_the_object_ends() {
    on_every_storage(|storage| {
        storage.put("r", b"0123456789").unwrap();
        for (offset, length, wanted) in
            [(0, 3, "012"), (4, 6, "456789"), (8, 100, "89"), (10, 1, ""), (99, 1, ""), (3, 0, "")]
        {
            let read = storage.get_range("r", offset, length).unwrap();
            assert_eq!(read, wanted.as_bytes(), "{offset}, {length} at {}", storage.location());
        }
    });
}

#[test]
fn a_listing_is_sorted_by_key_and_holds_the_prefix_and_nothing_else() {
    on_every_storage(|storage| {
        for key in ["b/2", "a/x/1", "b/10", "b/1/deep", "ba"] {
            storage.put(key, key.as_bytes()).unwrap();
        }
        let keys = |prefix: &str| -> Vec<String> {
            let listed = storage.list(prefix).unwrap();
            assert!(listed.iter().all(|listed| listed.size == listed.key.len() as u64));
            listed.into_iter().map(|listed| listed.key).collect()
        };
        assert_eq!(keys(""), ["a/x/1", "b/1/deep", "b/10", "b/2", "ba"]);
        assert_eq!(keys("b/"), ["b/1/deep", "b/10", "b/2"]);
        assert_eq!(keys("b"), ["b/1/deep", "b/10", "b/2", "ba"]);
        assert_eq!(keys("b/1"), ["b/1/deep", "b/10"]);
        assert!(keys("c/").is_empty());
    });
}

#[test]
fn of_many_that_create_one_object_exactly_one_does() {
    const WRITERS: usize = 8;
    on_every_storage(|storage| {
        for round in 0..20 {
            let (key, together) = (format!("epochs/{round}"), Barrier::new(WRITERS));
            let created: Vec<usize> = thread::scope(|scope| {
                let writers: Vec<_> = (0..WRITERS)
                    .map(|writer| {
                        let (storage, key, together) = (&storage, &key, &together);
                        scope.spawn(move || {
                            together.wait();
                            storage.put_if_absent(key, format!("writer {writer}").repeat(500).as_bytes()).unwrap()
                        })
                    })
                    .collect();
                let answers = writers.into_iter().map(|writer| writer.join().unwrap()).enumerate();
                answers.filter(|(_, put)| *put == Put::Created).map(|(writer, _)| writer).collect()
            });
            let [winner] = created[..] else { panic!("created by {created:?} at {}", storage.location()) };
            assert_eq!(storage.get(&key).unwrap(), format!("writer {winner}").repeat(500).as_bytes());
        }
    });
}

#[test]
fn a_name_that_leads_elsewhere_is_refused_by_every_verb() {
    on_every_storage(|storage| {
        for key in ["../out", "/out", "a//b", ""] {
            let refused = |result: Result<(), StorageError>| matches!(result, Err(StorageError::BadKey { .. }));
            assert!(refused(storage.put(key, b"x")), "{key:?}");
            assert!(refused(storage.put_if_absent(key, b"x").map(|_| ())), "{key:?}");
            assert!(refused(storage.get(key).map(|_| ())), "{key:?}");
            assert!(refused(storage.get_range(key, 0, 1).map(|_| ())), "{key:?}");
            assert!(refused(storage.delete(key)), "{key:?}");
        }
    });
}
