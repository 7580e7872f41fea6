// Fails in the way that its first argument names. VALUE, NAME and PORT differ from run to run.
const fs = require('fs');
const net = require('net');
const VALUE = Number(process.env.VALUE), NAME = process.env.NAME, PORT = Number(process.env.PORT);

function read(object) {
  return object.name.length;
}

function read_again(object) {
  return object.name.length;
}

class Store {
  get(key) {
    throw new RangeError(`no row ${VALUE} for ${key}`);
  }
}

async function later(work) {
  await new Promise(resolve => setTimeout(resolve, 1));
  return work();
}

const faults = {
  undefined_a() { read({}); },
  undefined_b() { read_again({}); },
  undefined_other() { read(undefined); },
  not_a_function() { faults.nothing(); },
  not_defined() { return missing_name; },
  range() { new Store().get('user-' + NAME); },
  custom() {
    class QuotaError extends Error { constructor(m) { super(m); this.name = 'QuotaError'; } }
    throw new QuotaError(`${NAME} used ${VALUE} bytes`);
  },
  missing_file() { fs.readFileSync(`/tmp/${NAME}/${VALUE}.json`); },
  parse() { JSON.parse('{' + 'x'.repeat(VALUE % 5 + 1)); },
  refused() { net.connect(1, '127.0.0.1'); },
  rejected() { later(() => read({})); },
  rejected_value() { Promise.reject(`job ${VALUE} gave up`); },
  caused() {
    try { read({}); } catch (cause) { throw new Error(`request ${VALUE} failed`, { cause }); }
  },
  module_missing() { require('no-such-module'); },
  recursion() { function a() { return b(); } function b() { return a() + 1; } a(); },
  logged() { console.error(new Error(`tick ${VALUE} was late`).stack); },
};
faults[process.argv[2]]();
