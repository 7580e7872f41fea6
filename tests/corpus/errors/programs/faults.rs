//! Fails in the way that its first argument names. VALUE, NAME and PORT differ from run to run.
use std::collections::HashMap;

fn value() -> usize {
    std::env::var("VALUE").unwrap().parse().unwrap()
}

fn name() -> String {
    std::env::var("NAME").unwrap()
}

#[inline(never)]
fn pick(list: &[usize]) -> usize {
    list[value()]
}

#[inline(never)]
fn pick_again(list: &[usize]) -> usize {
    list[value()]
}

#[inline(never)]
fn parse(text: &str) -> u32 {
    text.parse().unwrap()
}

struct Store(HashMap<String, usize>);

impl Store {
    fn get(&self, key: &str) -> usize {
        self.0.get(key).copied().unwrap_or_else(|| panic!("no row for {key:?} of {} bytes", value()))
    }
}

fn main() {
    match std::env::args().nth(1).unwrap().as_str() {
        "index" => drop(pick(&[1, 2, 3])),
        "index_elsewhere" => drop(pick_again(&[1, 2, 3])),
        "parse" => drop(parse(&format!("x{}", value()))),
        "none" => drop(std::env::args().nth(99).unwrap()),
        "expect" => drop(std::fs::read(format!("/tmp/{}/{}", name(), value())).expect("cannot read the model")),
        "store" => drop(Store(HashMap::new()).get(&name())),
        "equal" => assert_eq!(value(), value() + 1),
        "divide" => println!("{}", value() / (value() - value())),
        "thread" => drop(std::thread::Builder::new().name(format!("worker-{}", value())).spawn(|| pick(&[])).unwrap().join()),
        "overflow" => println!("{}", (value() as u8) - 255 - 1),
        "borrow" => {
            let cell = std::cell::RefCell::new(1);
            let _held = cell.borrow_mut();
            cell.borrow_mut();
        }
        "multiline" => panic!("schema does not match\n  row {}\n  of {}", value(), name()),
        other => panic!("{other}"),
    }
}
