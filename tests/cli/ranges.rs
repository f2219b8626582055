//! `pull` of a file that is large enough to come over several connections.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use super::hub::*;
use super::support::*;

const NAME: &str = "large.safetensors";
const BLOBS: &str = "hub/models--org--large/blobs";

/// Bytes of a range.
const RANGE: usize = 16 << 20;

/// Four ranges and a small one.
static LARGE: LazyLock<Vec<u8>> = LazyLock::new(|| (0..4 * RANGE + 12345).map(|i| ((i * i) >> 9) as u8).collect());

fn hub(twist: Twist) -> Hub {
    Hub::new([("org/large".to_string(), [(NAME.to_string(), LARGE.clone())].into())].into(), twist)
}

fn pull(place: &Place, hub: &Hub, more: &[&str]) -> Answer {
    hub.pull(place, &[&["org/large", "--all"], more].concat())
}

/// The file is whole, under its name, and nothing else is there.
fn assert_whole(place: &Place, answer: &Answer) {
    assert_eq!(answer.code, Some(0), "{}", answer.stderr);
    assert!(fs::read(blob(place)).unwrap() == *LARGE);
    assert!(!part(place).exists());
}

fn blob(place: &Place) -> std::path::PathBuf {
    place.path(&format!("{BLOBS}/{}", sha256(&LARGE)))
}

fn part(place: &Place) -> std::path::PathBuf {
    place.path(&format!("{BLOBS}/{}.incomplete", sha256(&LARGE)))
}

/// The ranges that were asked for where files lie, in the order of their bytes.
fn parts(hub: &Hub) -> Vec<(usize, usize)> {
    let asked = hub.asked();
    let mut parts: Vec<_> = asked.iter().filter(|asked| asked.elsewhere).map(|asked| asked.part().expect("a range")).collect();
    parts.sort_unstable();
    parts
}

fn every_range() -> Vec<(usize, usize)> {
    (0..5).map(|number| (number * RANGE, LARGE.len().min((number + 1) * RANGE) - 1)).collect()
}

#[test]
fn a_large_file_comes_over_several_connections() {
    // The second range waits until others are asked for beside it.
    let (asked, beside) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = beside.clone();
    let twist = move |request: &Asked, usual: Reply| {
        let Some((first, _)) = request.part().filter(|_| request.elsewhere) else { return usual };
        asked.fetch_add(1, Ordering::SeqCst);
        let since = Instant::now();
        while first == RANGE && asked.load(Ordering::SeqCst) < 5 && since.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
        if first == RANGE {
            seen.store(asked.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        usual
    };
    let (place, hub) = (Place::new(), hub(Box::new(twist)));
    let answer = pull(&place, &hub, &[]);
    assert_whole(&place, &answer);
    assert_eq!((parts(&hub), beside.load(Ordering::SeqCst)), (every_range(), 5));
    // The hub says once where the file lies.
    assert_eq!(hub.asked().iter().filter(|asked| !asked.elsewhere && asked.is_for(NAME)).count(), 1);
}

#[test]
fn one_connection_is_one_request() {
    let (place, hub) = (Place::new(), hub(Box::new(|_, usual| usual)));
    assert_whole(&place, &pull(&place, &hub, &["--connections", "1"]));
    let asked: Vec<_> = hub.asked().into_iter().filter(|asked| asked.elsewhere).collect();
    assert!(asked.len() == 1 && !asked[0].headers.contains_key("range"));
    pull(&place, &hub, &["--connections", "17"]).refused(2, &["--connections"]);
}

/// Every range's connection breaks once, and what has come of it is not asked for again.
#[test]
fn ranges_that_break_off_go_on_from_there() {
    let twist = |request: &Asked, usual: Reply| match request.part() {
        Some((first, _)) if first % RANGE == 0 => Reply { sent: Some(usual.body.len() / 3), ..usual },
        _ => usual,
    };
    let (place, hub) = (Place::new(), hub(Box::new(twist)));
    let answer = pull(&place, &hub, &[]);
    assert_whole(&place, &answer);
    assert_eq!(answer.stderr.matches("the connection broke").count(), 5, "{}", answer.stderr);
    let rest = |(first, last): (usize, usize)| [(first, last), (first + (last + 1 - first) / 3, last)];
    assert_eq!(parts(&hub), every_range().into_iter().flat_map(rest).collect::<Vec<_>>());
}

/// A server that sends all of the file is asked for it once more, over one connection.
#[test]
fn a_server_without_ranges_sends_the_file_in_one() {
    for from in [0, 2 * RANGE] {
        let twist = move |request: &Asked, usual: Reply| match request.part() {
            Some((first, _)) if request.elsewhere && first >= from => Reply::bytes(&LARGE),
            None if request.elsewhere => Reply::bytes(&LARGE),
            _ => usual,
        };
        let (place, hub) = (Place::new(), hub(Box::new(twist)));
        assert_whole(&place, &pull(&place, &hub, &["-q"]));
        let last = hub.asked().into_iter().rfind(|asked| asked.elsewhere).unwrap();
        assert!(last.part().is_none(), "from {from} on");
        if from == 0 {
            assert_eq!(hub.asked().iter().filter(|asked| asked.elsewhere).count(), 2);
        }
    }
}

/// What is there when a range fails for good is the file's beginning, and the next run asks for the rest alone.
#[test]
fn what_is_there_is_always_the_beginning() {
    let twist = |request: &Asked, usual: Reply| match request.part() {
        Some((first, _)) if first == 2 * RANGE => Reply::status(418),
        _ => usual,
    };
    let (place, first) = (Place::new(), hub(Box::new(twist)));
    pull(&place, &first, &["-q"]).refused(3, &[NAME, "answers 418"]);
    let there = fs::read(part(&place)).unwrap();
    assert!(there.len() <= 2 * RANGE && there[..] == LARGE[..there.len()] && !blob(&place).exists());
    // As another client might have left it: more than this one writes at a time, and not a whole range.
    fs::write(part(&place), &LARGE[..RANGE + 1]).unwrap();
    let second = hub(Box::new(|_, usual| usual));
    assert_whole(&place, &pull(&place, &second, &["-q"]));
    assert_eq!(parts(&second)[0], (RANGE + 1, 2 * RANGE));
}

#[test]
fn wrong_bytes_of_a_range_are_found() {
    let twist = |request: &Asked, mut usual: Reply| {
        if request.part().is_some_and(|(first, _)| first == 3 * RANGE) && !usual.body.is_empty() {
            usual.body[77] ^= 1;
        }
        usual
    };
    let (place, hub) = (Place::new(), hub(Box::new(twist)));
    pull(&place, &hub, &["-q"]).refused(3, &[NAME, "has the digest", "it was deleted"]);
    assert!(!blob(&place).exists() && !part(&place).exists());
}

/// Where the hub leads is good for some time; then the hub is asked again.
#[test]
fn an_address_that_ends_is_asked_for_again() {
    let twist = |request: &Asked, usual: Reply| match request.elsewhere && request.times == 3 {
        true => Reply::status(403),
        false => usual,
    };
    let (place, hub) = (Place::new(), hub(Box::new(twist)));
    assert_whole(&place, &pull(&place, &hub, &["-q"]));
    assert_eq!(hub.asked().iter().filter(|asked| !asked.elsewhere && asked.is_for(NAME)).count(), 2);
}

/// Lists and ranges that do not fit each other are told.
#[test]
fn a_range_of_another_file_is_refused() {
    let other = |request: &Asked, usual: Reply| match request.part() {
        Some((first, last)) if request.elsewhere => {
            let body = vec![0; last + 1 - first];
            Reply { status: 206, ..Reply::bytes(&body) }.with("Content-Range", format!("bytes {first}-{last}/99"))
        }
        _ => usual,
    };
    let (place, hub) = (Place::new(), hub(Box::new(other)));
    pull(&place, &hub, &["-q"]).refused(3, &[NAME, &format!("the hub lists {} bytes, and sends 99", LARGE.len())]);
    assert!(!blob(&place).exists());
}
