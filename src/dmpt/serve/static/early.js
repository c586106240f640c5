// The first script, before there is anything to see: a file that is dropped must not take the page's place. What is
// dropped before the page can take it waits in `window.dropped`.

addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) window.dropped = [...event.dataTransfer.files];
});
