// Gradio's buttons of examples show a picture and say nothing: they are given names for those who hear the page.
const names = element.querySelector("[data-names]").dataset.names.split("\n");
function call() {
  document.querySelectorAll("#examples .gallery-item").forEach((button, row) => {
    if (names[row] && button.getAttribute("aria-label") !== names[row]) button.setAttribute("aria-label", names[row]);
  });
}
new MutationObserver(call).observe(document.querySelector("#tabs"), { childList: true, subtree: true });
call();
