// What widgets cannot do themselves: the theme, which no kernel needs; names of sliders and pictures; lists that open whole.
(() => {
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
  // A browser's list shows what matches the text that stands in the field: emptied until something is typed or chosen.
  document.addEventListener("pointerdown", ({ target }) => {
    if (!target.matches(".ftlab input[list]") || target === document.activeElement || !target.list?.options.length) return;
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
  const look = async () => {
    const { baseUrl, kernelId } = JSON.parse(document.getElementById("jupyter-config-data")?.textContent || "{}");
    if (!kernelId || document.hidden) return;
    const answer = await fetch(`${baseUrl}api/kernels/${kernelId}`).catch(() => null);
    document.getElementById("ft-gone").hidden = !!answer?.ok;
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
