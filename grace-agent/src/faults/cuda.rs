//! CUDA, cuDNN, cuBLAS and NCCL: what they and those who call them write in one line.

use super::{Draft, Frame, Language};

/// The error that a line is, if it is one.
pub(super) fn line(text: &str) -> Option<Draft> {
    if text.contains("NCCL")
        && let Some(draft) = nccl(text)
    {
        return Some(draft);
    }
    if text.contains("Assertion `") && text.contains("thread: [") {
        return device_assert(text);
    }
    let about_it = ["CUDA", "Cuda", "cuda", "CUDNN_STATUS_", "CUBLAS_STATUS_", "CUSPARSE_STATUS_"]
        .iter()
        .any(|word| text.contains(word));
    if !about_it {
        return None;
    }
    if let Some(draft) = named_code(text) {
        return Some(draft);
    }
    // `CUDA error: an illegal memory access was encountered`
    for begin in
        ["CUDA error: ", "CUDA driver error: ", "CUDA runtime error: ", "CUDA failure: ", "Cuda failure "]
    {
        if let Some(rest) = text.strip_prefix(begin) {
            return Some(Draft::new(Language::Cuda, "CUDA error", rest));
        }
    }
    if let Some(rest) = text.strip_prefix("CUDA out of memory") {
        return Some(Draft::new(Language::Cuda, "CUDA error", &format!("CUDA out of memory{rest}")));
    }
    None
}

/// `… code=700(cudaErrorIllegalAddress) "call"`, `CUDNN_STATUS_EXECUTION_FAILED`, `cudaErrorMemoryAllocation`: the
/// name of the code is what failed.
fn named_code(text: &str) -> Option<Draft> {
    let starts = ["CUDNN_STATUS_", "CUBLAS_STATUS_", "CUSPARSE_STATUS_", "cudaError", "CUDA_ERROR_"];
    let at = starts.iter().filter_map(|s| text.find(s)).min()?;
    let name: String =
        text.get(at..)?.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    if name.ends_with("SUCCESS") || name == "cudaError" || name == "cudaErrorSuccess" || name == "cudaError_t"
    {
        return None;
    }
    // A Python exception that tells of it has its own frames; a sentence about it is none.
    let said = text.contains("rror")
        || text.contains("failed")
        || text.contains("ailure")
        || at == 0
        || text.contains("code=");
    if !said {
        return None;
    }
    let mut draft = Draft::new(Language::Cuda, &name, "");
    // `CUDA error at foo.cu:123 code=…`
    if let Some((_, place)) = text.split_once(" at ")
        && let Some(file) = place.split([' ', ',']).next().filter(|f| f.contains(':'))
    {
        draft
            .frames
            .push(Frame::new("<place>", file.trim_end_matches(|c: char| c.is_ascii_digit() || c == ':')));
    } else if let Some(file) =
        text.split([' ', '(']).find(|w| w.contains(".cu") || w.contains(".cpp") || w.contains(".cc"))
    {
        draft.frames.push(Frame::new("<place>", file.trim_end_matches(|c: char| !c.is_alphabetic())));
    }
    Some(draft)
}

/// `/src/Indexing.cu:1290: operator(): block: [35,0,0], thread: [64,0,0] Assertion `a < b` failed.`: thousands of them
/// for one fault.
fn device_assert(text: &str) -> Option<Draft> {
    let (before, rest) = text.split_once("Assertion `")?;
    let (what, _) = rest.rsplit_once("` failed").or_else(|| rest.rsplit_once("' failed"))?;
    let place = before.split(": ").next().unwrap_or(before);
    let file = place.trim_end_matches(|c: char| c.is_ascii_digit() || c == ':');
    let mut draft = Draft::new(Language::Cuda, "device-side assert", &format!("assertion '{what}' failed"));
    draft.frames.push(Frame::new("<device>", file));
    Some(draft)
}

fn nccl(text: &str) -> Option<Draft> {
    // `host:123:456 [0] misc/ibvwrap.cc:262 NCCL WARN Call to ibv_modify_qp failed …`
    if let Some((before, what)) = text.split_once("NCCL WARN ") {
        let mut draft = Draft::new(Language::Cuda, "NCCL WARN", what);
        let place = before.split(' ').rfind(|word| word.contains(".cc:") || word.contains(".cu:"));
        if let Some(place) = place {
            draft.frames.push(Frame::new(
                "<place>",
                place.trim_end_matches(|c: char| c.is_ascii_digit() || c == ':'),
            ));
        }
        return Some(draft);
    }
    // `[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=5, OpType=ALLREDUCE, …)`
    if let Some(at) = text.find("Watchdog caught collective operation timeout") {
        let operation = text
            .get(at..)?
            .split_once("OpType=")
            .map_or("", |(_, o)| o.split([',', ')']).next().unwrap_or(o));
        let kind = format!("NCCL timeout {operation}");
        return Some(Draft::new(Language::Cuda, kind.trim(), "Watchdog caught collective operation timeout"));
    }
    // `NCCL error in: /src/ProcessGroupNCCL.cpp:825, unhandled system error, NCCL version 2.7.8`
    if let Some(rest) = text.strip_prefix("NCCL error in: ") {
        let (place, what) = rest.split_once(", ")?;
        let what = what.split(", NCCL version").next().unwrap_or(what);
        let mut draft = Draft::new(Language::Cuda, "NCCL error", what);
        draft
            .frames
            .push(Frame::new("<place>", place.trim_end_matches(|c: char| c.is_ascii_digit() || c == ':')));
        return Some(draft);
    }
    if let Some((_, what)) = text.split_once("NCCL failure ").or_else(|| text.split_once("NCCL error: ")) {
        return Some(Draft::new(Language::Cuda, "NCCL error", what));
    }
    None
}
