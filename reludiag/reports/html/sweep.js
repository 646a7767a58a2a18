// The only thing that a page of a sweep has for itself: its runs as a file.

$("download").addEventListener("click", () => download(JSON.parse($("data").textContent).csv, "runs.csv"));
