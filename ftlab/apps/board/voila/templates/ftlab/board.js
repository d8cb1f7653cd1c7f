// What widgets cannot do themselves: the theme, which no kernel needs; names of sliders and pictures; lists that open whole.
(() => {
  // As wide as board.css keeps free for the arrow of a list.
  const ARROW_PIXELS = 26;
  const RETRY_MS = 3000;
  const root = document.documentElement, button = document.getElementById("ft-theme");
  const say = () => { button.textContent = root.dataset.ftTheme === "dark" ? "dark · 深色" : "light · 浅色"; };
  root.dataset.ftTheme = localStorage.getItem("ft-theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  say();
  button.addEventListener("click", () => {
    root.dataset.ftTheme = root.dataset.ftTheme === "dark" ? "light" : "dark";
    localStorage.setItem("ft-theme", root.dataset.ftTheme);
    say();
  });
  // A page that is left asks the server to end its kernel, with the value of this cookie; Voila sets none, and was refused.
  if (!/\b_xsrf=/.test(document.cookie)) {
    const value = Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, "0")).join("");
    document.cookie = `_xsrf=${value}; path=/; SameSite=Strict`;
  }
  // A browser's list shows what matches the text that stands in the field: a click on the arrow empties it until something
  // is typed or chosen; a click on the text leaves it to be edited.
  document.addEventListener("pointerdown", ({ target, offsetX }) => {
    if (!target.matches(".ftlab input[list]") || target.dataset.was !== undefined || !target.list?.options.length) return;
    if (offsetX < target.clientWidth - ARROW_PIXELS) return;
    target.dataset.was = target.value;
    target.placeholder = target.value;
    target.value = "";
  });
  document.addEventListener("input", ({ target }) => {
    if (target.dataset.was === undefined) return;
    delete target.dataset.was;
    target.dataset.typed = "";
  });
  document.addEventListener("focusout", ({ target }) => {
    if (target.dataset?.was !== undefined) target.value = target.dataset.was;
    // Typed and deleted again: to the browser nothing has changed, the kernel still has the old value.
    else if (target.dataset?.typed !== undefined && !target.value) target.dispatchEvent(new Event("change", { bubbles: true }));
    delete target.dataset?.was;
    delete target.dataset?.typed;
  });
  // Without its kernel the page would look alive and do nothing: after a laptop's sleep, or when the server has ended.
  // Only the server knows that it has gone: where none answers, another try follows, and twice without answer is said.
  let unanswered = 0, again;
  const look = async () => {
    const { baseUrl, kernelId } = JSON.parse(document.getElementById("jupyter-config-data")?.textContent || "{}");
    if (!kernelId || document.hidden) return;
    clearTimeout(again);
    const answer = await fetch(`${baseUrl}api/kernels/${kernelId}`).catch(() => null);
    unanswered = answer ? 0 : unanswered + 1;
    document.getElementById("ft-gone").hidden = answer?.status !== 404;
    document.getElementById("ft-away").hidden = unanswered < 2;
    if (unanswered) again = setTimeout(look, RETRY_MS);
  };
  document.addEventListener("visibilitychange", look);
  setInterval(look, 60000);
  new MutationObserver(() => {
    // The button names the other language.
    const other = document.querySelector(".ft-language");
    if (other) root.lang = other.textContent.trim() === "English" ? "zh" : "en";
    for (const picture of document.querySelectorAll("img.ft-plot:not([alt])")) picture.alt = "loss curves · 损失曲线";
    for (const handle of document.querySelectorAll(".noUi-handle:not([aria-label])")) {
      const label = handle.closest(".jupyter-widgets").querySelector(".widget-label");
      handle.setAttribute("aria-label", label ? label.textContent : "");
    }
  }).observe(document, { childList: true, subtree: true });
})();
