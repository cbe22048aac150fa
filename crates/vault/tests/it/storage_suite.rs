//! What every storage must do, whoever keeps the objects: the vault and the arbiter both stand on this and on no more.
//!
//! Other crates' tests include this file: each rule gets a storage that is empty.

use std::sync::{Arc, Barrier};
use std::thread;

use lifeboat_vault::storage::{Put, Storage, StorageError};

pub(crate) type Rule = fn(Arc<dyn Storage>);

pub(crate) const RULES: [(&str, Rule); 6] = [
    ("created once", an_object_is_created_once_replaced_whole_and_gone_when_deleted),
    ("ranges", a_range_is_short_only_where_the_object_ends),
    ("listing", a_listing_is_sorted_by_key_and_holds_the_prefix_and_nothing_else),
    ("one creator", of_many_that_create_one_object_exactly_one_does),
    ("names", a_name_that_leads_elsewhere_is_refused_by_every_verb),
    ("large", a_large_object_comes_back_whole),
];

/// Every rule, each on a storage of its own.
pub(crate) fn conforms(mut make: impl FnMut() -> Arc<dyn Storage>) {
    for (name, rule) in RULES {
        let storage = make();
        eprintln!("{name}: {}", storage.location());
        rule(storage);
    }
}

fn an_object_is_created_once_replaced_whole_and_gone_when_deleted(storage: Arc<dyn Storage>) {
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
}

fn a_range_is_short_only_where_the_object_ends(storage: Arc<dyn Storage>) {
    storage.put("r", b"0123456789").unwrap();
    for (offset, length, wanted) in
        [(0, 3, "012"), (4, 6, "456789"), (8, 100, "89"), (10, 1, ""), (99, 1, ""), (3, 0, "")]
    {
        let read = storage.get_range("r", offset, length).unwrap();
        assert_eq!(read, wanted.as_bytes(), "{offset}, {length} at {}", storage.location());
    }
    storage.put("empty", b"").unwrap();
    assert_eq!(storage.get_range("empty", 0, 4).unwrap(), b"");
}

fn a_listing_is_sorted_by_key_and_holds_the_prefix_and_nothing_else(storage: Arc<dyn Storage>) {
    for key in ["b/2", "a/x/1", "b/10", "b/1/deep", "ba", "c%2Fd/e%20f"] {
        storage.put(key, key.as_bytes()).unwrap();
    }
    assert_eq!(storage.put_if_absent("c%2Fd/g", b"c%2Fd/g").unwrap(), Put::Created);
    let keys = |prefix: &str| -> Vec<String> {
        let listed = storage.list(prefix).unwrap();
        assert!(listed.iter().all(|listed| listed.size == listed.key.len() as u64));
        listed.into_iter().map(|listed| listed.key).collect()
    };
    assert_eq!(keys(""), ["a/x/1", "b/1/deep", "b/10", "b/2", "ba", "c%2Fd/e%20f", "c%2Fd/g"]);
    assert_eq!(keys("b/"), ["b/1/deep", "b/10", "b/2"]);
    assert_eq!(keys("b"), ["b/1/deep", "b/10", "b/2", "ba"]);
    assert_eq!(keys("b/1"), ["b/1/deep", "b/10"]);
    assert_eq!(keys("c%2Fd/"), ["c%2Fd/e%20f", "c%2Fd/g"], "a name that is encoded stays as it is");
    assert_eq!(storage.get("c%2Fd/e%20f").unwrap(), b"c%2Fd/e%20f");
    assert!(keys("d/").is_empty());
}

fn of_many_that_create_one_object_exactly_one_does(storage: Arc<dyn Storage>) {
    const WRITERS: usize = 8;
    for round in 0..20 {
        let (key, together) = (format!("epochs/{round}"), Barrier::new(WRITERS));
        // In every other round all bring the same bytes: who was first cannot be seen by looking at them.
        let text = |writer: usize| format!("writer {}", if round % 2 == 0 { writer } else { 0 }).repeat(500);
        let created: Vec<usize> = thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let (storage, key, together, text) = (&storage, &key, &together, &text);
                    scope.spawn(move || {
                        together.wait();
                        storage.put_if_absent(key, text(writer).as_bytes()).unwrap()
                    })
                })
                .collect();
            let answers = writers.into_iter().map(|writer| writer.join().unwrap()).enumerate();
            answers.filter(|(_, put)| *put == Put::Created).map(|(writer, _)| writer).collect()
        });
        let [winner] = created[..] else { panic!("created by {created:?} at {}", storage.location()) };
        assert_eq!(storage.get(&key).unwrap(), text(winner).as_bytes());
    }
}

fn a_name_that_leads_elsewhere_is_refused_by_every_verb(storage: Arc<dyn Storage>) {
    for key in ["../out", "/out", "a//b", ""] {
        let refused = |result: Result<(), StorageError>| matches!(result, Err(StorageError::BadKey { .. }));
        assert!(refused(storage.put(key, b"x")), "{key:?}");
        assert!(refused(storage.put_if_absent(key, b"x").map(|_| ())), "{key:?}");
        assert!(refused(storage.get(key).map(|_| ())), "{key:?}");
        assert!(refused(storage.get_range(key, 0, 1).map(|_| ())), "{key:?}");
        assert!(refused(storage.delete(key)), "{key:?}");
    }
}

fn a_large_object_comes_back_whole(storage: Arc<dyn Storage>) {
    let bytes: Vec<u8> = (0..20_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    assert_eq!(storage.put_if_absent("pack/large", &bytes).unwrap(), Put::Created);
    assert_eq!(storage.put_if_absent("pack/large", b"small").unwrap(), Put::Exists);
    assert!(storage.get("pack/large").unwrap() == bytes);
    let middle = storage.get_range("pack/large", 9 << 20, 4096).unwrap();
    assert!(middle == bytes[9 << 20..(9 << 20) + 4096]);
    let listed = storage.list("pack/").unwrap();
    assert_eq!((listed[0].key.as_str(), listed[0].size), ("pack/large", bytes.len() as u64));
}
