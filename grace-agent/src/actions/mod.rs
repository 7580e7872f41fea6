//! The verbs: one file per action of the closed enum `action::Action`. They change the host and never decide.

pub mod ask_canary;
pub mod other_names;
pub mod own_cgroup;
pub mod quarantine;
pub mod restart_process;
pub mod restore_file;
pub mod restore_weights;
pub mod run_hook;
pub mod shed_load;
pub mod spawn;
pub mod start_process;
pub mod stop_process;
