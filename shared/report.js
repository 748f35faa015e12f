// Copy buttons: the text of the <textarea> that the button names goes to the clipboard.
document.querySelectorAll("button[data-copies]").forEach((button) => {
  const source = document.getElementById(button.dataset.copies);
  const say = (text) => {
    button.textContent = text;
    setTimeout(() => { button.textContent = button.dataset.label; }, 2000);
  };
  // Pages opened from http without TLS have no navigator.clipboard.
  const select = () => {
    source.select();
    say(document.execCommand("copy") ? button.dataset.done : button.dataset.failed);
  };
  button.addEventListener("click", () => {
    if (!navigator.clipboard) { select(); return; }
    navigator.clipboard.writeText(source.value).then(() => say(button.dataset.done), select);
  });
});
