# Makes unbalanced_tests.json from data/cake_unbalanced.csv (55 % of the rows of lme4's cake, drawn at random, with an
# artificial covariate x and an artificial factor block). Run in this folder: Rscript unbalanced_tests.R
suppressMessages({library(lmerTest);library(emmeans);library(jsonlite)})
d <- read.csv("data/cake_unbalanced.csv", colClasses=c(recipe="factor",batch="factor",temperature="factor",heat="factor",block="factor"))
ctl <- lmerControl(optimizer="bobyqa", optCtrl=list(rhobeg=0.2,rhoend=1e-9,maxfun=1e5), calc.derivs=FALSE)
emm_options(estble.tol=1e-8)
fit <- function(f, data=d, ...) lmer(as.formula(f), data, control=ctl, ...)
an <- function(m) { out <- list()
  for (type in c("I","II","III")) for (ddf in c("Satterthwaite","Kenward-Roger")) {
    a <- suppressMessages(anova(m, type=type, ddf=ddf))
    out[[paste0("type", type, "_", tolower(gsub("-","_",ddf)))]] <- data.frame(term=rownames(a), sum_sq=a[[1]], mean_sq=a[[2]], num_df=a[[3]], den_df=a[[4]], F=a[[5]], p=a[[6]]) }
  out }
res <- list()
forms <- list(
 crossed="angle ~ recipe * heat + (1 | batch)",
 covariate="angle ~ recipe * x + heat + (1 | batch)",
 three="angle ~ recipe * heat * block + x + (1 | batch)",
 no_intercept="angle ~ 0 + recipe + heat + x + (1 | batch)",
 no_intercept_crossed="angle ~ 0 + recipe * heat + (1 | batch)",
 slopes="angle ~ recipe + recipe:x + (1 | batch)",

 random_slope="angle ~ recipe * heat + (0 + x | batch)",
 numeric="angle ~ x * temp + (1 | batch)",
 single="angle ~ 0 + heat + (1 | batch)")
for (n in names(forms)) { m <- fit(forms[[n]]); res$anova[[n]] <- c(list(formula=forms[[n]], reml=as.numeric(REMLcrit(m))), an(m)) }
d2 <- subset(d, !(recipe=="B" & heat=="mid"))
m <- suppressMessages(fit(forms$crossed, d2)); res$anova$missing_cell <- c(list(formula=forms$crossed, dropped=list(recipe="B",heat="mid"), reml=as.numeric(REMLcrit(m))), suppressMessages(an(m)))
d3 <- subset(d, !(recipe=="A" & heat=="low"))
m <- suppressMessages(fit(forms$crossed, d3)); res$anova$missing_reference_cell <- c(list(formula=forms$crossed, dropped=list(recipe="A",heat="low"), reml=as.numeric(REMLcrit(m))), suppressMessages(an(m)))
df <- function(s) { s <- as.data.frame(s); s[] <- lapply(s, function(v) if (is.factor(v)) as.character(v) else v); s }
m <- fit(forms$three); emm_options(lmer.df="satterthwaite")
e <- function(...) df(suppressMessages(emmeans(m, ...)))
E0 <- suppressMessages(emmeans(m, "heat"))
res$emmeans$three <- list(formula=forms$three,
  heat=df(E0), heat_by_block=e("heat", by="block"), recipe_heat=e(c("recipe","heat")), heat_at_x=e("heat", at=list(x=4)), x_grid=e("x", at=list(x=c(5,15))))
for (a in c("tukey","holm","bonferroni","sidak","fdr","none","scheffe")) res$emmeans$three$pairs[[a]] <- df(summary(pairs(E0, adjust=a), infer=TRUE))
EB <- suppressMessages(emmeans(m, "heat", by="block"))
res$emmeans$three$pairs_by_block <- df(summary(pairs(EB), infer=TRUE))
res$emmeans$three$heat_bonferroni <- df(summary(E0, adjust="bonferroni"))
res$emmeans$three$heat_sidak <- df(summary(E0, adjust="sidak"))
ET <- suppressMessages(emmeans(m, c("recipe","heat")))
res$emmeans$three$pairs_recipe_heat <- df(summary(pairs(ET), infer=TRUE))
for (k in c("trt.vs.ctrl","consec","eff","poly","revpairwise")) res$emmeans$three$contrasts[[k]] <- df(summary(contrast(E0, k, adjust="none"), infer=TRUE))
J <- suppressMessages(joint_tests(m)); res$emmeans$three$joint_tests <- df(J)
res$emmeans$three$joint_tests_by_block <- df(suppressMessages(joint_tests(m, by="block")))
m <- fit(forms$covariate)
res$emmeans$covariate <- list(formula=forms$covariate, recipe=df(suppressMessages(emmeans(m,"recipe"))), recipe_at=df(suppressMessages(emmeans(m, c("recipe","x"), at=list(x=c(5,10,15))))),
  trends=df(emtrends(m, "recipe", var="x")), trend_pairs=df(summary(pairs(emtrends(m,"recipe",var="x")),infer=TRUE)))
fp <- "angle ~ recipe * poly(temp, 2) + scale(x) + (1 | batch)"
m <- fit(fp)
res$emmeans$poly <- list(formula=fp, recipe=df(suppressMessages(emmeans(m,"recipe"))), at=df(suppressMessages(emmeans(m, c("recipe","temp"), at=list(temp=c(180,220))))))
m <- suppressMessages(fit(forms$crossed, d2))
res$emmeans$missing_cell <- list(formula=forms$crossed, cells=df(suppressMessages(emmeans(m,c("recipe","heat")))), recipe=df(suppressMessages(emmeans(m,"recipe"))), pairs=df(summary(pairs(suppressMessages(emmeans(m,"recipe"))),infer=TRUE)))
m <- lmer(angle ~ recipe*heat + (1|batch), d, control=ctl, offset=0.5*x)
res$emmeans$offset <- list(recipe=df(suppressMessages(emmeans(m,"recipe"))))
m <- lmer(angle ~ recipe*heat + (1|batch), d, control=ctl, weights=x)
res$anova$weighted <- c(list(formula=forms$crossed, weights="x", reml=as.numeric(REMLcrit(m))), an(m)[c(1,3,5)])
res$note <- paste("lmerTest::anova, emmeans, emtrends and joint_tests of models fitted by lmer (REML) with a tight optimiser.",
  "Type II and III of lmerTest for nested terms (recipe + recipe:heat) are left out: it does not see that recipe is contained.",
  "emmeans::joint_tests rounds F and df to three digits.")
res$software <- paste0("R ", getRversion(), ", lme4 ", packageVersion("lme4"), ", lmerTest ", packageVersion("lmerTest"), ", pbkrtest ", packageVersion("pbkrtest"), ", emmeans ", packageVersion("emmeans"))
writeLines(toJSON(res, digits=15, auto_unbox=TRUE, na="null", pretty=TRUE, dataframe="columns"), "unbalanced_tests.json")
