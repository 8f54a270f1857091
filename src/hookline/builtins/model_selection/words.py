"""Words: what a question asks for, in the languages that most people write in.

Lives here: the words, by language and by what they are worth. Elsewhere: what else a question shows, and what a score means (complexity.py).
Idea: a table to read and to add to. Short on purpose: words that ask for work of the mind, not words about hard things. Each is a pattern that must fit a whole word, in small letters."""

from __future__ import annotations

import re
from collections.abc import Mapping

PROOF: Mapping[str, str] = {
    "English": r"(?:dis)?prove|proof (?:of|that)|derive|derivation of",
    "German": r"beweis(?:e|en|t)?|widerleg(?:e|en|t)|herleit(?:en|ung)|leite? .{1,80} her",
    "French": r"prouve[rz]?|démontre[rz]?|démonstration de|preuve (?:de|que)",
    "Spanish": r"demuestr[ae]n?|demostrar|demostración de|(?:prueb[ae]|probar) que",
    "Portuguese": r"demonstr(?:e|ar|a)|prov(?:e|ar|a) que",
    "Italian": r"dimostra(?:re|mi)?|dimostrazione (?:di|che)",
    "Dutch": r"bewijs|bewijzen",
    "Polish": r"udowodni\w*|wykaż",
    "Russian": r"докаж\w*|доказать|доказательство",
    "Ukrainian": r"доведіть|доведи|довести",
    "Turkish": r"kanıtla\w*|ispatla\w*",
    "Arabic": r"أثبت|برهن|اثبت",
    "Hindi": r"सिद्ध|साबित",
    "Chinese": r"(?:证明|證明)(?![书書信])|推导|推導",
    "Japanese": r"証明(?!書)|導出",
    "Korean": r"증명(?!서)|유도하",
}
WORK: Mapping[str, str] = {
    "English": r"step[- ]by[- ]step|architect\w*|design|refactor\w*|optimi[sz]e|debug|diagnose|root cause|implement|algorithms?|trade-?offs?",
    "German": r"schritt für schritt|schrittweise|architektur|entw(?:irf|erfe|erfen|urf)|refaktor\w*|optimier\w*|debugg\w*|diagnostizier\w*|implementier\w*|algorithm(?:us|en)",
    "French": r"étape par étape|pas à pas|architecture|conce(?:vez|voir)|conçois|refactor\w*|refactoris\w*|optimise[rz]?|débogu\w*|implément\w*|algorithmes?",
    "Spanish": r"paso a paso|arquitectura|diseñ(?:a|e|ar)|refactori\w*|optimi(?:za|ce|zar)|depur(?:a|e|ar)|implement(?:a|e|ar)|algoritmos?",
    "Portuguese": r"passo a passo|arquitetura|projet(?:e|ar)|refator\w*|otimi(?:ze|zar)|depur(?:e|ar)|implement(?:e|ar)|algoritmos?",
    "Italian": r"passo (?:dopo|per) passo|architettura|progetta(?:re)?|rifattorizza\w*|ottimizza(?:re)?|implementa(?:re)?|algoritm[oi]",
    "Dutch": r"stap voor stap|architectuur|ontwerp(?:en)?|refactor\w*|optimaliseer|implementeer|algoritmes?",
    "Polish": r"krok po kroku|architektur\w*|zaprojektuj|zrefaktoryzuj|zoptymalizuj|zaimplementuj|algorytm\w*",
    "Russian": r"пошагово|шаг за шагом|архитектур\w*|спроектируй\w*|разработай\w*|рефактор\w*|оптимизируй\w*|реализуй\w*|алгоритм\w*",
    "Ukrainian": r"покроково|крок за кроком|архітектур\w*|спроєктуй\w*|розроби\w*|оптимізуй\w*|реалізуй\w*",
    "Turkish": r"adım adım|mimari\w*|tasarla\w*|optimize et\w*|algoritma\w*",
    "Arabic": r"خطوة بخطوة|صمم|حسّن|نفّذ|خوارزمي\w*",
    "Hindi": r"चरण दर चरण|डिज़ाइन|अनुकूलित|एल्गोरि\w*",
    "Chinese": r"一步一步|逐步|架构|架構|设计|設計|重构|重構|优化|優化|调试|調試|实现|實現|算法|演算法",
    "Japanese": r"順を追って|段階的に|ステップバイステップ|アーキテクチャ|設計|リファクタ|最適化|デバッグ|実装|アルゴリズム",
    "Korean": r"단계별|아키텍처|설계|리팩터|리팩토링|최적화|디버[그깅]|구현|알고리즘",
}
THOUGHT: Mapping[str, str] = {
    "English": r"compare|contrast|evaluate|analy[sz]e|review|critique|plan|strategy|justify|why|explain how|pros and cons|edge cases?|theorem|complexity|bugs?|race conditions?|vulnerabilit(?:y|ies)|security",
    "German": r"vergleich\w*|bewerte\w*|analysier\w*|prüfe?|überprüf\w*|strategie|begründe\w*|warum|weshalb|wieso|erkläre?,? wie|vor- und nachteile|randfälle|fehler|sicherheitslücken?",
    "French": r"compare[rz]?|évalue[rz]?|analyse[rz]?|examine[rz]?|relis(?:ez)?|planifie[rz]?|stratégie|justifie[rz]?|pourquoi|explique[rz]? comment|avantages et (?:les )?inconvénients|failles?|bogues?",
    "Spanish": r"compar(?:a|e|ar)|eval[uú](?:a|e|ar)|anali(?:za|ce|zar)|revis(?:a|e|ar)|planific(?:a|ar)|estrategia|justifi(?:ca|que|car)|por qué|explica cómo|ventajas y (?:las )?desventajas|errores|vulnerabilidades",
    "Portuguese": r"compar(?:e|ar)|avali(?:e|ar)|analis(?:e|ar)|revis(?:e|ar)|planej(?:e|ar)|estratégia|justifi(?:que|car)|por que|explique como|vantagens e (?:as )?desvantagens|erros|vulnerabilidades",
    "Italian": r"confronta(?:re)?|valuta(?:re)?|analizza(?:re)?|rivedi|esamina(?:re)?|pianifica(?:re)?|strategia|giustifica(?:re)?|perché|spiega come|vantaggi e (?:gli )?svantaggi|vulnerabilità",
    "Dutch": r"vergelijk\w*|evalueer|analyseer|beoordeel|controleer|strategie|rechtvaardig|waarom|leg uit hoe|voor- en nadelen|fouten|kwetsbaarheden",
    "Polish": r"porównaj|oceń|przeanalizuj|sprawdź|zaplanuj|strategi\w*|uzasadnij|dlaczego|wyjaśnij,? jak|wady i zalety|błęd\w*|luk\w* w zabezpieczeniach",
    "Russian": r"сравни\w*|оцени\w*|проанализируй\w*|проверь\w*|спланируй\w*|стратеги\w*|обоснуй\w*|почему|объясни\w*,? как|плюсы и минусы|ошибк\w*|уязвимост\w*",
    "Ukrainian": r"порівняй\w*|оціни\w*|проаналізуй\w*|перевір\w*|сплануй\w*|стратегі\w*|обґрунтуй\w*|чому|поясни\w*,? як|плюси (?:та|і) мінуси|помилк\w*|вразливост\w*",
    "Turkish": r"karşılaştır\w*|değerlendir\w*|analiz et\w*|incele\w*|planla\w*|strateji\w*|gerekçe\w*|neden|niçin|nasıl .{1,40} açıkla|artı\w* ve eksi\w*|hata\w*|güvenlik açı\w*",
    "Arabic": r"قارن|قيّم|حلل|حلّل|راجع|خطط|استراتيجية|برر|لماذا|اشرح كيف|أخطاء|ثغرات",
    "Hindi": r"तुलना|मूल्यांकन|विश्लेषण|समीक्षा|योजना|रणनीति|क्यों|समझाइए कि कैसे|त्रुटि\w*|कमज़ोरि\w*",
    "Chinese": r"比较|比較|对比|對比|评估|評估|分析|审查|審查|评审|評審|规划|規劃|策略|论证|論證|为什么|為什麼|为何|如何|优缺点|優缺點|漏洞|缺陷|错误|錯誤",
    "Japanese": r"比較|評価|分析|レビュー|計画|戦略|正当化|なぜ|どのように|長所と短所|バグ|脆弱性|欠陥",
    "Korean": r"비교|평가|분석|검토|리뷰|계획|전략|왜|어떻게|장단점|버그|취약점|오류",
}
LANGUAGES = tuple(PROOF)

_ANYWHERE = frozenset({"Hindi", "Chinese", "Japanese", "Korean"})
"""Languages whose words `\\b` does not find: they are written without spaces, or end in signs that are no letters to it."""


class Words:
    """One column of the table, ready to be looked for."""

    def __init__(self, patterns: Mapping[str, str]) -> None:
        whole = "|".join(pattern for language, pattern in patterns.items() if language not in _ANYWHERE)
        self._whole = re.compile(rf"\b(?:{whole})\b")
        self._anywhere = re.compile("|".join(patterns[language] for language in sorted(_ANYWHERE)))

    def find(self, text: str) -> set[str]:
        """Those that occur in a text of small letters."""
        found = set(self._whole.findall(text))
        return found if text.isascii() else found.union(self._anywhere.findall(text))
